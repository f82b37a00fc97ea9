//! The text that `/metrics` returns.

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

/// The content of `/metrics`.
#[derive(Clone, Debug)]
pub(crate) struct Exposition(pub(super) Arc<Registry>);

impl Exposition {
    /// The content type of the text.
    pub(crate) const CONTENT_TYPE: &'static str =
        "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// Returns all metrics as text.
    ///
    /// # Errors
    /// Returns an error if a metric can't be encoded.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.0)?;
        Ok(text)
    }
}
