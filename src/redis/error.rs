//! The error of unusable settings.

use std::error::Error;

/// A URL or a file is unusable for connections to Redis. The text contains no part of the URL.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct InvalidSettings(Box<dyn Error + Send + Sync>);

impl InvalidSettings {
    pub(super) fn new(problem: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(problem.into())
    }
}

pub(super) type Result<T> = std::result::Result<T, InvalidSettings>;
