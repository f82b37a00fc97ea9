//! The command line: one file a sub-command.

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
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, CommandFactory as _, Parser, Subcommand};

use self::client::ClientArgs;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::import::read_line as read_import_line;
use self::output::{Output, OutputFormat};
use crate::config::{Config, Sources};

/// Issues and validates API keys for other services.
#[derive(Debug, Parser)]
#[command(name = "keyvouch", version, propagate_version = true, max_term_width = 110)]
struct Cli {
    /// How answers are printed: for people, or as JSON for programs.
    #[arg(long, short, global = true, value_enum, default_value_t, env = "KEYVOUCH_OUTPUT")]
    output: OutputFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server.
    Serve(SettingsArgs),
    /// Bring the tables of the database up to date, or say whether they are.
    Migrate {
        #[command(subcommand)]
        command: migrate::MigrateCommand,
    },
    /// Administer the keys of a running server.
    Key {
        #[command(subcommand)]
        command: key::KeyCommand,
    },
    /// Show the audit trail: who changed which key, when, and what. Newest first.
    Events(events::EventsArgs),
    /// Bring hashed keys of another system to a running server. Exit status: 0 all are there, 3 some were rejected,
    /// 1 it could not go on.
    Import(import::ImportArgs),
    /// Delete the keys of a running server that expired before an instant.
    Prune(prune::PruneArgs),
    /// Ask a running server whether a key may be used. Exit status: 0 allowed, 3 denied, 1 could not be decided.
    Validate(validate::ValidateArgs),
    /// Ask a running server whether it is healthy. Exit status: 0 serving, 1 not.
    Healthcheck(healthcheck::HealthcheckArgs),
    /// Check or show the settings.
    Config {
        #[command(subcommand)]
        command: config::ConfigCommand,
    },
    /// Print a script that completes these commands in a shell.
    Completions(generate::CompletionsArgs),
    /// Write manual pages of these commands.
    Man(generate::ManArgs),
    /// Print the version.
    Version,
}

/// The settings of a server: defaults, then the file, then variables `KEYVOUCH__SECTION__FIELD`, then flags.
#[derive(Clone, Debug, Args)]
struct SettingsArgs {
    /// A TOML file with settings.
    #[arg(long, value_name = "FILE", env = "KEYVOUCH_CONFIG")]
    config: Option<PathBuf>,
    /// One setting, over file and environment, for example `--set server.listen=127.0.0.1:6000`.
    #[arg(long, value_name = "SECTION.FIELD=VALUE", value_parser = arguments::setting)]
    set: Vec<(String, String)>,
}

impl SettingsArgs {
    fn load(self) -> Result<Config> {
        let utf8 = |text: OsString| text.to_string_lossy().into_owned();
        let environment = std::env::vars_os().map(|(name, value)| (utf8(name), utf8(value))).collect();
        Sources { file: self.config, environment, flags: self.set }
            .load()
            .context("the settings can't be used")
    }
}

/// Parses the arguments, does what they say and returns the exit status: 0 done or allowed, 1 failed, 2 wrong arguments,
/// 3 the key was denied.
#[must_use]
pub fn main() -> ExitCode {
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
