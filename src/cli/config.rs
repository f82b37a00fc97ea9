//! `keyvouch config`

use std::io::{Write as _, stderr};
use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use serde_json::json;

use super::SettingsArgs;
use super::output::{Output, json_of};
use crate::config::json_schema;

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Check the settings, including the files of certificates and admin tokens, without starting a server.
    Check(SettingsArgs),
    /// Print the effective settings. Secrets are redacted.
    Show(SettingsArgs),
    /// Print the JSON Schema of the settings.
    Schema,
}

pub(super) fn run(command: ConfigCommand, output: &Output) -> Result<ExitCode> {
    match command {
        ConfigCommand::Check(settings) => {
            let settings = settings.load_and_warn()?.settings;
            settings.check_files()?;
            for warning in settings.warnings() {
                // If standard error is closed, the result is still printed.
                let _ = writeln!(stderr(), "warning: {warning}");
            }
            output.value("the settings are valid", &json!({ "good": true }))
        }
        ConfigCommand::Show(settings) => {
            let config = settings.load_and_warn()?.config;
            output.value(toml::to_string(&config)?.trim_end(), &json_of(&config)?)
        }
        ConfigCommand::Schema => {
            let schema = json_schema();
            output.value(&serde_json::to_string_pretty(&schema)?, &schema)
        }
    }
}
