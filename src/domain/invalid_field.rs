//! The error type of all input checks.

/// An input value is invalid. The text contains the field and the fix, but never the value, which may be a
/// secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidField {
    /// The field as the caller names it, for example `owner_id` or `scopes[2]`.
    pub field: String,
    /// The problem and its fix, as a sentence without a full stop.
    pub problem: String,
}

impl InvalidField {
    /// Returns an error of `field`.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}
