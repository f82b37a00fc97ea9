//! `keyvouch migrate`

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use keyvouch_migration::{PlannedMigration, SchemaState};
use serde_json::json;

use super::SettingsArgs;
use super::client::block_on;
use super::output::Output;
use crate::app::open_sql;
use crate::repository::{KeyRepository as _, SqlRepository};

#[derive(Debug, Subcommand)]
pub(super) enum MigrateCommand {
    /// Apply all pending migrations.
    Up {
        /// Print the statements without running them.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Undo the latest migrations. Deletes the data in the tables and columns that they added.
    Down {
        /// Number of migrations to undo.
        #[arg(long, default_value_t = 1)]
        steps: u32,
        /// Print the statements without running them.
        #[arg(long)]
        dry_run: bool,
        /// Undo the migrations even if the database has keys. This can delete keys for good.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// List pending migrations. Exit status: 0 none, 3 some.
    Status(SettingsArgs),
}

/// Exit status if migrations are pending.
const PENDING: u8 = 3;

pub(super) fn run(command: MigrateCommand, output: &Output) -> Result<ExitCode> {
    block_on(async {
        let sql = Box::pin(open(match &command {
            MigrateCommand::Up { settings, .. }
            | MigrateCommand::Down { settings, .. }
            | MigrateCommand::Status(settings) => settings.clone(),
        }))
        .await?;
        let outcome = execute(&sql, &command, output).await;
        let closed = sql.close().await;
        let status = outcome?;
        closed?;
        Ok(status)
    })
}

async fn execute(sql: &SqlRepository, command: &MigrateCommand, output: &Output) -> Result<ExitCode> {
    match command {
        MigrateCommand::Up { dry_run: true, .. } => {
            show(&sql.plan_migrations().await.context("can't read the schema")?, output)
        }
        MigrateCommand::Up { dry_run: false, .. } => {
            let applied = sql.migrate().await.context("the migration failed")?;
            let text = match applied.as_slice() {
                [] => "nothing to do: the schema is up to date".to_owned(),
                applied => format!("applied {}", applied.join(", ")),
            };
            output.value(&text, &json!({ "applied": applied }))
        }
        MigrateCommand::Down { steps, dry_run: true, .. } => {
            show(&sql.plan_undo(*steps).await.context("can't read the schema")?, output)
        }
        MigrateCommand::Down { yes: false, .. }
            if sql.has_keys().await.context("can't check for keys")? =>
        {
            bail!(
                "the database has keys, and undoing migrations can delete them permanently; stop all servers, then set --yes to proceed"
            )
        }
        MigrateCommand::Down { steps, .. } => {
            let undone = sql.undo_migrations(*steps).await.context("the migrations could not be undone")?;
            let text = match undone.as_slice() {
                [] => "nothing to do: no migrations are applied".to_owned(),
                undone => format!("undone {}", undone.join(", ")),
            };
            output.value(&text, &json!({ "undone": undone }))
        }
        MigrateCommand::Status(_) => {
            let SchemaState { pending, unknown } =
                sql.schema_state().await.context("can't read the schema")?;
            let mut text = match pending.as_slice() {
                [] => "the schema is up to date".to_owned(),
                pending => format!("pending: {}\nrun `keyvouch migrate up`", pending.join(", ")),
            };
            if !unknown.is_empty() {
                text.push_str(&format!("\nunknown to this release: {}", unknown.join(", ")));
            }
            output.value(&text, &json!({ "pending": pending, "unknown": unknown }))?;
            Ok(if pending.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(PENDING) })
        }
    }
}

fn show(plan: &[PlannedMigration], output: &Output) -> Result<ExitCode> {
    let text = match plan {
        [] => "-- nothing to do".to_owned(),
        plan => plan.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
    };
    let plan: Vec<_> = plan.iter().map(|it| json!({ "name": it.name, "sql": it.sql })).collect();
    output.value(&text, &json!({ "plan": plan }))
}

async fn open(settings: SettingsArgs) -> Result<SqlRepository> {
    match open_sql(&settings.load_and_warn()?.settings).await? {
        Some(sql) => Ok(sql),
        None => bail!("store.url: this backend has no migrations; set the URL of an SQL database"),
    }
}
