//! Output, as text or as JSON.

use std::io::{self, Write as _, stdout};
use std::process::ExitCode;
use std::sync::LazyLock;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use comfy_table::{Table, presets};
use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};

use crate::grpc::pb::FILE_DESCRIPTOR_SET;

/// Output format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum OutputFormat {
    /// Human-readable text.
    #[default]
    Text,
    /// JSON. Responses are printed as proto3 JSON.
    Json,
}

/// Prints results in the chosen format.
#[derive(Debug)]
pub(super) struct Output {
    format: OutputFormat,
}

impl Output {
    pub(super) fn new(format: OutputFormat) -> Self {
        Self { format }
    }

    /// Prints a message, as proto3 JSON or formatted by `text`.
    pub(super) fn message<M: Message + Name>(
        &self,
        message: &M,
        text: impl FnOnce(&M) -> String,
    ) -> Result<()> {
        match self.format {
            OutputFormat::Text => print(&text(message)),
            OutputFormat::Json => print(&to_json(message)?),
        }
    }

    /// Prints `text` or `json`, and returns the exit status of success.
    pub(super) fn value(&self, text: &str, json: &serde_json::Value) -> Result<ExitCode> {
        match self.format {
            OutputFormat::Text => print(text)?,
            OutputFormat::Json => print(&json.to_string())?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The reader of standard output closed the pipe. A result that can't be printed is a failure, because otherwise a
/// denial could look like success. Only lists may end early.
#[derive(Debug, thiserror::Error)]
#[error("can't write to standard output: broken pipe")]
pub(super) struct ReaderGone;

/// Prints `text` and a line feed.
pub(super) fn print(text: &str) -> Result<()> {
    let mut out = stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        outcome => outcome.context("can't write to standard output"),
    }
}

/// Formats names and values in two columns. Omits empty values.
pub(super) fn pairs<'p>(pairs: impl IntoIterator<Item = (&'p str, String)>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for (name, value) in pairs {
        if !value.is_empty() {
            table.add_row([name, &value]);
        }
    }
    table.trim_fmt()
}

/// Formats a table with a header.
pub(super) fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(head);
    for row in rows {
        table.add_row(row);
    }
    table.trim_fmt()
}

static DESCRIPTORS: LazyLock<Result<DescriptorPool, prost_reflect::DescriptorError>> =
    LazyLock::new(|| DescriptorPool::decode(FILE_DESCRIPTOR_SET));

/// Converts a message of `keyvouch.v1` to proto3 JSON, which represents 64-bit numbers as strings.
fn to_json<M: Message + Name>(message: &M) -> Result<String> {
    let descriptors = DESCRIPTORS.as_ref().context("invalid message descriptors")?;
    let descriptor =
        descriptors.get_message_by_name(&M::full_name()).context("missing message descriptor")?;
    let message = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())?;
    let mut serializer = serde_json::Serializer::new(Vec::new());
    // Include default values, so that programs see `"valid": false`.
    message.serialize_with_options(&mut serializer, &SerializeOptions::new().skip_default_fields(false))?;
    Ok(String::from_utf8(serializer.into_inner())?)
}

/// Converts any value to JSON.
pub(super) fn json_of(value: &impl serde::Serialize) -> Result<serde_json::Value> {
    Ok(value.serialize(serde_json::value::Serializer)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::pb;

    #[test]
    fn json_includes_default_values() {
        let response = pb::ValidateResponse {
            valid: false,
            reason: pb::Reason::Revoked.into(),
            ..pb::ValidateResponse::default()
        };
        let json: serde_json::Value = serde_json::from_str(&to_json(&response).unwrap()).unwrap();
        assert_eq!(json["valid"], false);
        assert_eq!(json["reason"], "REASON_REVOKED");
    }

    #[test]
    fn times_and_revisions_follow_the_proto3_mapping() {
        let time = prost_types::Timestamp { seconds: 0, nanos: 1_000 };
        let key = pb::Key { revision: 7, create_time: Some(time), ..pb::Key::default() };
        let json: serde_json::Value = serde_json::from_str(&to_json(&key).unwrap()).unwrap();
        assert_eq!(json["revision"], "7");
        assert_eq!(json["createTime"], "1970-01-01T00:00:00.000001Z");
    }
}
