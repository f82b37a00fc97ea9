//! `keyvouch prune`

use std::future::ready;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use futures_util::TryStreamExt as _;
use prost_types::Timestamp;
use serde_json::json;
use tonic::Code;

use super::output::Output;
use super::{ClientArgs, arguments};
use crate::domain::{Clock as _, SystemClock};
use crate::grpc::{pb, to_proto_time};
use crate::repository::deletions::delete_each;

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
    let keys = key_store.stream_keys(pb::StreamKeysRequest::default()).await?.into_inner();
    let expired = keys.try_filter_map(|response| {
        let key = response.key.filter(|key| key.expire_time.is_some_and(|time| instant(time) <= before));
        ready(Ok(key))
    });
    let delete = |key: pb::Key| {
        let mut key_store = key_store.clone();
        let request = client.call(pb::DeleteKeyRequest { id: key.id, expected_revision: Some(key.revision) });
        async move {
            if dry_run {
                return Ok(true);
            }
            match key_store.delete_key(request).await {
                Ok(_) => Ok(true),
                // The key was changed or deleted after it was listed.
                Err(status) if matches!(status.code(), Code::Aborted | Code::NotFound) => Ok(false),
                Err(status) => Err(status),
            }
        }
    };
    let (count, outcome) = delete_each(expired, delete).await;
    outcome.with_context(|| format!("stopped after {count} expired keys"))?;
    let what = if dry_run { "would be deleted" } else { "deleted" };
    output.value(&format!("{count} expired keys {what}"), &json!({ "dryRun": dry_run, "deleted": count }))
}
