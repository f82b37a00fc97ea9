//! `keyvouch validate`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::output::{Output, pairs};
use super::{ClientArgs, arguments};
use crate::grpc::pb::{ScopeMatch, ValidateRequest, ValidateResponse};

/// The exit status of a denial; 1 and 2 are failures.
const DENIED: u8 = 3;

#[derive(Debug, Args)]
pub(super) struct ValidateArgs {
    /// The file that holds the key; without it, the key is read from standard input. There is no argument for the key
    /// itself: arguments can be seen by every process of the machine.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// A scope that is needed; may be given several times.
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// One of the scopes is enough.
    #[arg(long)]
    any: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(arguments: ValidateArgs, output: &Output) -> Result<ExitCode> {
    let secret = arguments::secret(arguments.key_file.as_deref())?;
    let scope_match = if arguments.any { ScopeMatch::Any } else { ScopeMatch::All };
    let request = ValidateRequest {
        secret: secret.as_str().to_owned(),
        required_scopes: arguments.scopes,
        scope_match: scope_match.into(),
    };
    let response =
        arguments.client.validator().await?.validate(arguments.client.call(request)).await?.into_inner();
    output.message(&response, describe)?;
    Ok(if response.valid { ExitCode::SUCCESS } else { ExitCode::from(DENIED) })
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
        ("expires", key.expire_time.map(|time| time.to_string()).unwrap_or_default()),
    ])
}
