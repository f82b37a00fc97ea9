//! `keyvouch healthcheck`

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::ClientArgs;
use super::output::Output;

#[derive(Debug, Args)]
pub(super) struct HealthcheckArgs {
    /// Service to check: `keyvouch.v1.Validator` or `keyvouch.v1.KeyStore`. Empty checks the whole server.
    #[arg(long, default_value = "")]
    service: String,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(arguments: HealthcheckArgs, output: &Output) -> Result<ExitCode> {
    let mut health = HealthClient::new(arguments.client.connect().await?);
    let answer =
        health.check(arguments.client.call(HealthCheckRequest { service: arguments.service })).await?;
    let status = answer.into_inner().status();
    output.value(status.as_str_name(), &json!({ "status": status.as_str_name() }))?;
    Ok(if status == ServingStatus::Serving { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
