//! The source of the rows of an import.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use super::ImportArgs;
use super::file::{CsvRows, JsonLines};
use super::litestar::{self, LitestarRows};
use super::row::Row;
use crate::domain::{Clock as _, SystemClock};
use crate::grpc::to_proto_time;

/// Format of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// One JSON object per line.
    Jsonl,
    /// CSV with a header.
    Csv,
    /// SQL database of litestar-api-auth.
    Litestar,
}

/// Reads rows one by one.
pub(super) struct Source {
    owner: Option<String>,
    rows: Rows,
}

enum Rows {
    Jsonl(JsonLines),
    Csv(CsvRows),
    Litestar(LitestarRows),
}

impl Source {
    pub(super) async fn open(arguments: &ImportArgs) -> Result<Self> {
        let from = arguments.from.as_str();
        let rows = match format(arguments)? {
            Format::Jsonl => Rows::Jsonl(JsonLines::open(Path::new(from))?),
            Format::Csv => Rows::Csv(CsvRows::open(Path::new(from))?),
            Format::Litestar => {
                let owner = arguments.owner.as_deref().context(
                    "--owner: required, because litestar-api-auth stores no owners; set the owner of the keys",
                )?;
                let now = to_proto_time(SystemClock.now());
                let (table, prefix) = (&arguments.table, &arguments.key_prefix);
                Rows::Litestar(LitestarRows::open(from, table, owner, prefix, now).await?)
            }
        };
        Ok(Self { owner: arguments.owner.clone(), rows })
    }

    /// Returns the next row. `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Row>> {
        let owner = self.owner.as_deref();
        match &mut self.rows {
            // Reading a file or standard input can block. Responses must be read in the meantime.
            Rows::Jsonl(rows) => tokio::task::block_in_place(|| rows.next(owner)),
            Rows::Csv(rows) => tokio::task::block_in_place(|| rows.next(owner)),
            Rows::Litestar(rows) => rows.next().await,
        }
    }
}

/// Returns the given format, or the one that follows from the name of the source.
pub(super) fn format(arguments: &ImportArgs) -> Result<Format> {
    if let Some(format) = arguments.format {
        return Ok(format);
    }
    if litestar::is_url(&arguments.from) {
        return Ok(Format::Litestar);
    }
    let path = PathBuf::from(&arguments.from);
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("jsonl" | "ndjson") => Ok(Format::Jsonl),
        Some("csv") => Ok(Format::Csv),
        _ => {
            bail!("--from: unknown format; use a .jsonl or .csv file or a database URL, or set --format")
        }
    }
}
