//! `keyvouch completions` and `keyvouch man`

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Command};
use clap_complete::Shell;

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// Shell that the script is for.
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Directory for the pages, for example `/usr/local/share/man/man1`. It is created if it does not exist.
    #[arg(value_name = "DIRECTORY")]
    folder: PathBuf,
}

pub(super) fn completions(arguments: &CompletionsArgs, mut command: Command) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "keyvouch", &mut script);
    match std::io::stdout().write_all(&script) {
        // The reader closed the pipe, for example `head`.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        written => written.context("can't write the script")?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn man(arguments: &ManArgs, command: Command) -> Result<ExitCode> {
    let folder: &Path = &arguments.folder;
    let cannot_write = || format!("can't write the pages to {}", folder.display());
    std::fs::create_dir_all(folder).with_context(cannot_write)?;
    clap_mangen::generate_to(command, folder).with_context(cannot_write)?;
    Ok(ExitCode::SUCCESS)
}
