//! `keyvouch migrate`

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use serde_json::json;

use super::SettingsArgs;
use super::client::block_on;
use super::output::Output;
use crate::app::open_sql;
use crate::repository::SqlRepository;

#[derive(Debug, Subcommand)]
pub(super) enum MigrateCommand {
    /// Apply all migrations that are pending.
    Up(SettingsArgs),
    /// Say which migrations are pending. Exit status: 0 none, 1 some.
    Status(SettingsArgs),
}

pub(super) fn run(command: MigrateCommand, output: &Output) -> Result<ExitCode> {
    block_on(async {
        match command {
            MigrateCommand::Up(settings) => {
                let sql = open(settings).await?;
                let applied = sql.migrate().await.context("the migration failed");
                sql.close().await?;
                let applied = applied?;
                let text = match applied.as_slice() {
                    [] => "nothing to do: the schema is up to date".to_owned(),
                    applied => format!("applied {}", applied.join(", ")),
                };
                output.value(&text, &json!({ "applied": applied }))
            }
            MigrateCommand::Status(settings) => {
                let sql = open(settings).await?;
                let pending = sql.pending_migrations().await.context("can't read the schema");
                sql.close().await?;
                let pending = pending?;
                let text = match pending.as_slice() {
                    [] => "the schema is up to date".to_owned(),
                    pending => format!("pending: {}\nrun `keyvouch migrate up`", pending.join(", ")),
                };
                output.value(&text, &json!({ "pending": pending }))?;
                Ok(if pending.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
        }
    })
}

async fn open(settings: SettingsArgs) -> Result<SqlRepository> {
    match open_sql(&settings.load()?.store).await? {
        Some(sql) => Ok(sql),
        None => bail!("store.url: the memory store has no tables to migrate"),
    }
}
