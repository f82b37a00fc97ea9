//! The command line. Each subcommand has its own module.

mod arguments;
mod client;
mod config;
mod error;
mod events;
mod generate;
mod healthcheck;
mod import;
mod key;
mod migrate;
mod output;
mod profile;
mod prune;
mod serve;
mod validate;

use std::ffi::OsString;
use std::io::{Write as _, stderr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, CommandFactory as _, Parser, Subcommand};

use self::client::ClientArgs;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::import::read_line as read_import_line;
use self::output::{Output, OutputFormat};
use crate::config::{Loaded, Sources};

/// Issues and validates API keys for other services.
#[derive(Debug, Parser)]
#[command(name = "keyvouch", version, propagate_version = true, max_term_width = 110)]
struct Cli {
    /// Output format.
    #[arg(long, short, global = true, value_enum, default_value_t, env = "KEYVOUCH_OUTPUT")]
    output: OutputFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server.
    Serve(SettingsArgs),
    /// Apply, undo or list migrations of the database schema.
    Migrate {
        #[command(subcommand)]
        command: migrate::MigrateCommand,
    },
    /// Administer the keys of a running server.
    Key {
        #[command(subcommand)]
        command: key::KeyCommand,
    },
    /// List the events of the audit trail, newest first: time, change, key, owner, actor and request id.
    Events(events::EventsArgs),
    /// Import hashed keys of another system into a running server. Exit status: 0 all keys are stored, 3 some were
    /// rejected, 1 the import failed.
    Import(import::ImportArgs),
    /// Delete the keys of a running server that expired at or before a given time.
    Prune(prune::PruneArgs),
    /// Validate a key with a running server. Exit status: 0 allowed, 3 denied, 1 undecided.
    Validate(validate::ValidateArgs),
    /// Check the health of a running server. Exit status: 0 serving, 1 not serving or unreachable.
    Healthcheck(healthcheck::HealthcheckArgs),
    /// Check or show settings.
    Config {
        #[command(subcommand)]
        command: config::ConfigCommand,
    },
    /// Print a shell completion script.
    Completions(generate::CompletionsArgs),
    /// Write manual pages.
    Man(generate::ManArgs),
    /// Print the version.
    Version,
}

/// Settings of a server. Sources in increasing precedence: defaults, the file, environment variables
/// `KEYVOUCH__SECTION__FIELD`, flags.
#[derive(Clone, Debug, Args)]
struct SettingsArgs {
    /// File with settings: TOML, or JSON if its name ends in `.json`.
    #[arg(long, value_name = "FILE", env = "KEYVOUCH_CONFIG")]
    config: Option<PathBuf>,
    /// Value of a setting, for example `--set server.listen=127.0.0.1:6000`. Overrides the file and the environment.
    /// Repeatable.
    #[arg(long, value_name = "SECTION.FIELD=VALUE", value_parser = arguments::setting)]
    set: Vec<(String, String)>,
}

impl SettingsArgs {
    /// Reads the settings.
    fn load(self) -> Result<Loaded> {
        let utf8 = |text: OsString| text.to_string_lossy().into_owned();
        let environment = std::env::vars_os().map(|(name, value)| (utf8(name), utf8(value))).collect();
        Sources { file: self.config, environment, flags: self.set }.load().context("invalid settings")
    }

    /// Reads the settings, and prints a warning for each one that has its old name. For commands without a log.
    fn load_and_warn(self) -> Result<Loaded> {
        let loaded = self.load()?;
        for renamed in &loaded.renamed {
            // If standard error is closed, the command still runs.
            let _ = writeln!(stderr(), "warning: {renamed}");
        }
        Ok(loaded)
    }
}

/// Parses the arguments, runs the command and returns the exit status: 0 success or allowed, 1 failure, 2 invalid
/// arguments, 3 denied, migrations pending, or rows rejected.
#[must_use]
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.output);
    let outcome = match cli.command {
        Command::Serve(settings) => serve::run(settings),
        Command::Migrate { command } => migrate::run(command, &output),
        Command::Key { command } => client::block_on(key::run(command, &output)),
        Command::Events(arguments) => client::block_on(events::run(arguments, &output)),
        Command::Import(arguments) => client::block_on_threads(import::run(arguments, &output)),
        Command::Prune(arguments) => client::block_on(prune::run(arguments, &output)),
        Command::Validate(arguments) => client::block_on(validate::run(arguments, &output)),
        Command::Healthcheck(arguments) => client::block_on(healthcheck::run(arguments, &output)),
        Command::Config { command } => config::run(command, &output),
        Command::Completions(arguments) => generate::completions(&arguments, Cli::command()),
        Command::Man(arguments) => generate::man(&arguments, Cli::command()),
        Command::Version => output
            .value(env!("CARGO_PKG_VERSION"), &serde_json::json!({ "version": env!("CARGO_PKG_VERSION") })),
    };
    outcome.unwrap_or_else(|error| error::report(&error))
}
