//! Settings that can't be used.

use std::error::Error;

/// A URL or a file that no connection to Redis can be made with. The text contains no part of the URL.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct InvalidSettings(Box<dyn Error + Send + Sync>);

impl InvalidSettings {
    pub(super) fn new(problem: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(problem.into())
    }
}

pub(super) type Result<T> = std::result::Result<T, InvalidSettings>;
