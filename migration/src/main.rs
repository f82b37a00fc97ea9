//! `keyvouch-migration`: applies the migrations of Keyvouch to a database, for deployments that run this step
//! separately from the server. `keyvouch migrate` does the same with the server's settings.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use keyvouch_migration::sea_orm_migration::sea_orm::{ConnectOptions, Database, DatabaseConnection, DbErr};
use keyvouch_migration::{MigrateError, Migrator, Names, PlannedMigration};

/// Migrates the tables of Keyvouch in a database. The variable `DATABASE_URL` has the URL of the database. It
/// is not an argument, because its password would be visible in the list of processes.
#[derive(Debug, Parser)]
#[command(name = "keyvouch-migration", version, max_term_width = 110)]
struct Cli {
    /// Prefix of the names of all tables.
    #[arg(long, global = true, default_value = "", value_name = "TEXT")]
    table_prefix: String,
    /// PostgreSQL schema of the tables. If unset, the default schema of the database user is used.
    #[arg(long, global = true, value_name = "NAME")]
    schema: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Apply all pending migrations.
    Up {
        /// Print the statements without making changes.
        #[arg(long)]
        dry_run: bool,
    },
    /// Revert the last migrations and delete the tables and columns that they added, including their data.
    Down {
        /// Number of migrations to revert.
        #[arg(long, default_value_t = 1)]
        steps: u32,
        /// Print the statements without making changes.
        #[arg(long)]
        dry_run: bool,
        /// Proceed even if the database has keys.
        #[arg(long)]
        yes: bool,
    },
    /// List pending migrations. Exit status: 0 if there are none, 3 if there are some.
    Status,
}

/// Timeout of connecting. sqlx retries for this time even if the server refuses connections.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The exit status for pending migrations.
const PENDING: u8 = 3;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(code) => code,
        Err(error) => {
            let mut text = format!("error: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                text.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            complain(&text);
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let names = Names::prefixed(&cli.table_prefix).map_err(|error| format!("--table-prefix {error}"))?;
    let mut migrator = Migrator::new(names);
    if let Some(schema) = &cli.schema {
        migrator = migrator.in_schema(schema).map_err(|error| format!("--schema {error}"))?;
    }
    let database = connect(cli.schema.as_deref()).await?;
    let outcome = execute(&migrator, &database, cli.command).await;
    database.close().await?;
    Ok(outcome?)
}

async fn execute(
    migrator: &Migrator,
    database: &DatabaseConnection,
    command: Command,
) -> Result<ExitCode, MigrateError> {
    match command {
        Command::Up { dry_run: true } => show(&migrator.plan_up(database).await?),
        Command::Up { dry_run: false } => tell("applied", &migrator.up(database).await?),
        Command::Down { steps, dry_run: true, .. } => show(&migrator.plan_down(database, steps).await?),
        Command::Down { yes: false, .. } if migrator.has_keys(database).await? => {
            complain("error: the database has keys, which this can delete for good: give --yes");
            return Ok(ExitCode::FAILURE);
        }
        Command::Down { steps, .. } => tell("undone", &migrator.down(database, steps).await?),
        Command::Status => {
            let state = migrator.state(database).await?;
            tell("pending", &state.pending);
            return Ok(if state.pending.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(PENDING) });
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Connects with exactly one connection, which [`Migrator`] requires.
async fn connect(schema: Option<&str>) -> Result<DatabaseConnection, String> {
    let url = std::env::var("DATABASE_URL").map_err(|_| "set DATABASE_URL to the URL of the database")?;
    let mut options = ConnectOptions::new(url);
    options
        .max_connections(1)
        .acquire_timeout(CONNECT_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        .sqlx_logging(false);
    if let Some(schema) = schema {
        options.set_schema_search_path(schema);
    }
    // The driver's error can contain the whole URL with the password.
    Database::connect(options).await.map_err(|error| match error {
        DbErr::Conn(_) => "can't connect: is DATABASE_URL right, and is the database up?".to_owned(),
        error => error.to_string(),
    })
}

fn show(plan: &[PlannedMigration]) {
    if plan.is_empty() {
        say("-- nothing to do");
    }
    for migration in plan {
        say(&migration.to_string());
    }
}

fn tell(what: &str, names: &[String]) {
    if names.is_empty() {
        say(&format!("{what}: none"));
    }
    for name in names {
        say(&format!("{what}: {name}"));
    }
}

#[expect(clippy::print_stdout, reason = "a command answers on its standard output")]
fn say(text: &str) {
    println!("{text}");
}

#[expect(clippy::print_stderr, reason = "a command complains on its standard error")]
fn complain(text: &str) {
    eprintln!("{text}");
}
