//! `keyvouch validate`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use zeroize::Zeroizing;

use super::output::{Output, pairs};
use super::{ClientArgs, arguments};
use crate::domain::{KeyPrefix, SecretKey, SystemEntropy};
use crate::grpc::pb::{Reason, ScopeMatch, ValidateRequest, ValidateResponse};

/// The exit status of a denial; 1 and 2 are failures.
const DENIED: u8 = 3;

#[derive(Debug, Args)]
pub(super) struct ValidateArgs {
    /// The file that holds the key; without it, the key is read from standard input. There is no argument for the key
    /// itself: arguments can be seen by every process of the machine.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Try the server with a key that nobody has, made just now: exit status 0 if it says that there is none.
    #[arg(long, conflicts_with_all = ["key_file", "scopes"])]
    probe: bool,
    /// What that key begins with: a prefix that the server makes keys with.
    #[arg(long, default_value = "kv_", requires = "probe")]
    prefix: String,
    /// A scope that is needed; may be given several times.
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// One of the scopes is enough.
    #[arg(long)]
    any: bool,
    /// How old the answer may be, for example 500ms. 0s: the store is asked. Less than the server's `cache.min_staleness` needs
    /// a credential: a token, a key with a `keyvouch.*` scope, or a certificate.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    max_staleness: Option<std::time::Duration>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(arguments: ValidateArgs, output: &Output) -> Result<ExitCode> {
    let secret = if arguments.probe {
        unknown_key(&arguments.prefix)?
    } else {
        arguments::secret(arguments.key_file.as_deref())?
    };
    let scope_match = if arguments.any { ScopeMatch::Any } else { ScopeMatch::All };
    let request = ValidateRequest {
        secret: secret.as_str().to_owned(),
        required_scopes: arguments.scopes,
        scope_match: scope_match.into(),
        max_staleness: arguments.max_staleness.map(prost_types::Duration::try_from).transpose()?,
    };
    let response = arguments
        .client
        .validator(arguments.max_staleness.is_some())
        .await?
        .validate(arguments.client.call(request))
        .await?
        .into_inner();
    output.message(&response, describe)?;
    if arguments.probe {
        return judge_probe(&response);
    }
    Ok(if response.valid { ExitCode::SUCCESS } else { ExitCode::from(DENIED) })
}

fn unknown_key(prefix: &str) -> Result<Zeroizing<String>> {
    let prefix = KeyPrefix::parse("--prefix", prefix)?;
    let secret = SecretKey::generate(&prefix, &SystemEntropy)?;
    Ok(Zeroizing::new(secret.expose().to_owned()))
}

fn judge_probe(response: &ValidateResponse) -> Result<ExitCode> {
    match response.reason() {
        Reason::NotFound => Ok(ExitCode::SUCCESS),
        Reason::Malformed => {
            bail!("the server makes no keys with this prefix: give one of its keys.prefix, --prefix PREFIX")
        }
        other => bail!("a key that nobody has was answered with {}", other.as_str_name()),
    }
}

fn describe(response: &ValidateResponse) -> String {
    let reason =
        response.reason().as_str_name().trim_start_matches("REASON_").to_lowercase().replace('_', " ");
    let key = response.key.clone().unwrap_or_default();
    pairs([
        ("verdict", if response.valid { "allowed".to_owned() } else { format!("denied: {reason}") }),
        ("key", key.id),
        ("name", key.name),
        ("owner", key.owner_id),
        ("scopes", key.scopes.join(" ")),
        ("as of", freshness(response)),
        ("expires", key.expire_time.map(|time| time.to_string()).unwrap_or_default()),
    ])
}

fn freshness(response: &ValidateResponse) -> String {
    let Some(freshness) = response.freshness else { return String::new() };
    let tier = freshness.tier().as_str_name().trim_start_matches("TIER_").to_lowercase().replace('_', " ");
    let staleness =
        freshness.staleness.and_then(|it| std::time::Duration::try_from(it).ok()).unwrap_or_default();
    format!("{:.3} s ago, by the {tier}", staleness.as_secs_f64())
}
