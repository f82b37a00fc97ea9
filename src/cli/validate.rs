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

/// Exit status of a denial. 1 and 2 are failures.
const DENIED: u8 = 3;

#[derive(Debug, Args)]
pub(super) struct ValidateArgs {
    /// File with the key [default: standard input]. The key can't be passed as an argument, because arguments are
    /// visible to all processes on the machine.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Validate a generated key that does not exist. The exit status is 0 if the server denies it as not found.
    #[arg(long, conflicts_with_all = ["key_file", "scopes"])]
    probe: bool,
    /// Prefix of the generated key: one of the server's `keys.prefix`.
    #[arg(long, default_value = "kv_", requires = "probe")]
    prefix: String,
    /// Required scope. Repeatable: all of the scopes are required.
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// Require any of the scopes instead of all.
    #[arg(long)]
    any: bool,
    /// Maximum staleness of the result, for example 500ms. 0s forces a read from the backend. Values below the
    /// server's `cache.min_staleness` need a credential: an admin token, a key with the scope `keyvouch.validate`,
    /// `keyvouch.read` or `keyvouch.admin`, or a client certificate.
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
        return check_probe(&response);
    }
    Ok(if response.valid { ExitCode::SUCCESS } else { ExitCode::from(DENIED) })
}

fn unknown_key(prefix: &str) -> Result<Zeroizing<String>> {
    let prefix = KeyPrefix::parse("--prefix", prefix)?;
    let secret = SecretKey::generate(&prefix, &SystemEntropy)?;
    Ok(Zeroizing::new(secret.expose().to_owned()))
}

fn check_probe(response: &ValidateResponse) -> Result<ExitCode> {
    match response.reason() {
        Reason::NotFound => Ok(ExitCode::SUCCESS),
        Reason::Malformed => {
            bail!("--prefix: not a prefix of this server; use one of its keys.prefix")
        }
        other => bail!(
            "--probe: expected REASON_NOT_FOUND for a key that does not exist, got {}",
            other.as_str_name()
        ),
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
    format!("{:.3} s ago, from the {tier}", staleness.as_secs_f64())
}
