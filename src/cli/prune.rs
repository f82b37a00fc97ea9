//! `keyvouch prune`

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use prost_types::Timestamp;
use serde_json::json;
use tonic::Code;

use super::output::Output;
use super::{ClientArgs, arguments};
use crate::domain::{Clock as _, SystemClock};
use crate::grpc::{pb, to_proto_time};

#[derive(Debug, Args)]
pub(super) struct PruneArgs {
    /// Delete keys that expired at or before this time in the past, for example 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = arguments::time)]
    expired_before: Timestamp,
    /// Count the keys without deleting them.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(arguments: PruneArgs, output: &Output) -> Result<ExitCode> {
    let PruneArgs { expired_before, dry_run, client } = arguments;
    let instant = |time: Timestamp| (time.seconds, time.nanos);
    let before = instant(expired_before);
    if before > instant(to_proto_time(SystemClock.now())) {
        bail!(
            "--expired-before: must not be in the future, because it would delete keys that are still valid"
        );
    }
    let mut key_store = client.key_store().await?;
    let mut keys = key_store.stream_keys(pb::StreamKeysRequest::default()).await?.into_inner();
    let mut count = 0_u64;
    while let Some(response) = keys.message().await? {
        let key = response.key.unwrap_or_default();
        if key.expire_time.is_none_or(|time| instant(time) > before) {
            continue;
        }
        if !dry_run {
            let request = pb::DeleteKeyRequest { id: key.id, expected_revision: Some(key.revision) };
            match key_store.delete_key(client.call(request)).await {
                Ok(_) => {}
                // The key was changed or deleted after it was listed.
                Err(status) if matches!(status.code(), Code::Aborted | Code::NotFound) => continue,
                Err(status) => return Err(status.into()),
            }
        }
        count += 1;
    }
    let what = if dry_run { "would be deleted" } else { "deleted" };
    output.value(&format!("{count} expired keys {what}"), &json!({ "dryRun": dry_run, "deleted": count }))
}
