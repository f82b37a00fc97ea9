//! `keyvouch import`

mod file;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use file::read_line;
mod json;
mod litestar;
mod row;
mod source;

use std::io::{Write as _, stderr};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use self::row::Row;
use self::source::{Format, Source, format};
use super::ClientArgs;
use super::output::Output;
use crate::domain::{Clock as _, InvalidField, OwnerId, SystemClock};
use crate::grpc::pb::import_keys_response::Result as Outcome;
use crate::grpc::{imported_key, pb};

/// The exit status when rows were rejected.
const REJECTED: u8 = 3;
/// Maximum number of keys that are read ahead of the server's responses.
const READ_AHEAD: usize = 1_000;

/// An import can be repeated: keys that are already stored are left unchanged.
#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// File of JSON Lines or CSV, `-` for standard input, or the URL of the SQL database of litestar-api-auth.
    /// Arguments are visible to all processes on the machine, so pass a URL with a password in `KEYVOUCH_IMPORT_FROM`.
    #[arg(long, env = "KEYVOUCH_IMPORT_FROM", hide_env_values = true, value_name = "FILE|URL")]
    from: String,
    /// Format of the source. By default, it follows from the file extension or the URL scheme.
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Owner of keys whose rows have no owner. Required for litestar-api-auth.
    #[arg(long)]
    owner: Option<String>,
    /// Prefix of the key strings of litestar-api-auth, which its database does not contain.
    #[arg(long, default_value = "pyorg_", value_name = "PREFIX")]
    key_prefix: String,
    /// Table of litestar-api-auth: TABLE or SCHEMA.TABLE.
    #[arg(long, default_value = "api_keys")]
    table: String,
    /// Accept keys that were revoked and then deleted in Keyvouch, which makes them valid again. The audit trail records
    /// this.
    #[arg(long)]
    allow_revoked: bool,
    /// Check the rows without storing keys. This needs no server, so it does not detect keys that are already stored.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// Counts of rows by outcome.
#[derive(Debug, Default)]
struct Report {
    imported: u64,
    already_there: u64,
    rejected: u64,
}

/// Outcome of reading a row. The server's responses to sent rows arrive in the order of these steps.
enum Step {
    Sent(String),
    Rejected(String, InvalidField),
    /// The source can't be read any further.
    Broken(anyhow::Error),
}

pub(super) async fn run(arguments: ImportArgs, output: &Output) -> Result<ExitCode> {
    if let Some(owner) = &arguments.owner {
        OwnerId::parse("--owner", owner)?;
    }
    let source = Source::open(&arguments).await?;
    let mut report = Report::default();
    let outcome = if arguments.dry_run {
        check(source, &mut report).await
    } else {
        send(source, &arguments, &mut report).await
    };
    // Print the report even if the import failed, because some keys may be stored.
    output.value(&report.text(&arguments)?, &report.json(&arguments)?)?;
    outcome.context("the import failed; run it again: keys that are already stored are left unchanged")?;
    Ok(if report.rejected == 0 { ExitCode::SUCCESS } else { ExitCode::from(REJECTED) })
}

/// Checks rows as the server would.
async fn check(mut source: Source, report: &mut Report) -> Result<()> {
    while let Some(Row { label, request }) = source.next().await? {
        let checked = request.and_then(imported_key).and_then(|key| key.check(SystemClock.now()));
        match checked {
            Ok(()) => report.imported += 1,
            Err(problem) => report.reject(&label, &problem.to_string())?,
        }
    }
    Ok(())
}

async fn send(source: Source, arguments: &ImportArgs, report: &mut Report) -> Result<()> {
    let client = &arguments.client;
    let (requests, sent) = mpsc::channel(READ_AHEAD);
    let (steps, mut taken) = mpsc::channel(READ_AHEAD);
    let mut key_store = client.key_store().await?;
    // Read only after the server has accepted the call: standard input can block for a long time.
    let mut answers = key_store.import_keys(ReceiverStream::new(sent)).await?.into_inner();
    let reading = tokio::spawn(read(source, arguments.allow_revoked, requests, steps));
    while let Some(step) = taken.recv().await {
        match step {
            Step::Rejected(label, problem) => report.reject(&label, &problem.to_string())?,
            Step::Broken(error) => return Err(error),
            Step::Sent(label) => match answers.message().await.with_context(|| format!("at {label}"))? {
                Some(answer) => report.take(&label, answer)?,
                None => bail!("the server ended the stream at {label}"),
            },
        }
    }
    reading.await.context("the reader failed")
}

/// Reads ahead of the server's responses, limited by the capacity of the two channels.
async fn read(
    mut source: Source,
    allow_revoked_hash: bool,
    requests: mpsc::Sender<pb::ImportKeysRequest>,
    steps: mpsc::Sender<Step>,
) {
    loop {
        let step = match source.next().await {
            Ok(None) => return,
            Err(error) => Step::Broken(error),
            Ok(Some(Row { label, request })) => match request.and_then(checked) {
                Err(problem) => Step::Rejected(label, problem),
                Ok(request) => {
                    // An error means that the call has ended. The receiver of the steps gets its status.
                    let _ = requests.send(pb::ImportKeysRequest { allow_revoked_hash, ..request }).await;
                    Step::Sent(label)
                }
            },
        };
        let is_last = matches!(step, Step::Broken(_));
        if steps.send(step).await.is_err() || is_last {
            return;
        }
    }
}

/// Checks the request before it is sent. A key that is too large would end the stream, and with it the import.
fn checked(request: pb::ImportKeysRequest) -> Result<pb::ImportKeysRequest, InvalidField> {
    imported_key(request.clone()).map(|_| request)
}

impl Report {
    fn take(&mut self, label: &str, answer: pb::ImportKeysResponse) -> Result<()> {
        match answer.result {
            Some(Outcome::Key(_)) => self.imported += 1,
            Some(Outcome::Error(error)) if error.code == i32::from(Code::AlreadyExists) => {
                self.already_there += 1;
            }
            Some(Outcome::Error(error)) => self.reject(label, &error.message)?,
            None => bail!("the server sent a response without a result to {label}"),
        }
        Ok(())
    }

    /// Prints the rejection immediately, because there can be more rejections than fit in memory.
    fn reject(&mut self, label: &str, problem: &str) -> Result<()> {
        self.rejected += 1;
        writeln!(stderr(), "rejected: {label}: {problem}").context("can't write to standard error")
    }

    fn text(&self, arguments: &ImportArgs) -> Result<String> {
        let Self { imported, already_there, rejected } = self;
        let mut text = if arguments.dry_run {
            format!("{imported} can be imported, {rejected} would be rejected; nothing was stored")
        } else {
            format!("{imported} imported, {already_there} already stored, {rejected} rejected")
        };
        if let Some((prefix, length)) = foreign(arguments)? {
            text.push_str(&format!(
                "\nTo validate these keys, add this pattern to the server's settings (if the keys do not begin with {prefix}, set \
                 --key-prefix):\n[keys]\nforeign = [{{ prefix = {prefix}, length = {length} }}]",
                prefix = toml::Value::from(prefix),
            ));
        }
        Ok(text)
    }

    fn json(&self, arguments: &ImportArgs) -> Result<serde_json::Value> {
        let foreign =
            foreign(arguments)?.map(|(prefix, length)| json!({ "prefix": prefix, "length": length }));
        Ok(json!({
            "dryRun": arguments.dry_run,
            "imported": self.imported,
            "alreadyThere": self.already_there,
            "rejected": self.rejected,
            "foreign": foreign.into_iter().collect::<Vec<_>>(),
        }))
    }
}

/// Returns the entry of `keys.foreign` that the keys need. `None` if it is unknown.
fn foreign(arguments: &ImportArgs) -> Result<Option<(&str, usize)>> {
    let prefix = arguments.key_prefix.as_str();
    let is_litestar = format(arguments)? == Format::Litestar;
    Ok(is_litestar.then(|| (prefix, prefix.len() + litestar::BODY_CHARS)))
}
