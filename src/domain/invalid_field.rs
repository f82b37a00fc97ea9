//! The error of every check of input.

/// A value that was given breaks a rule. The text names the field and the fix, never the value: it may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidField {
    /// The field as the caller knows it, for example `owner_id` or `scopes[2]`.
    pub field: String,
    /// What is wrong and what would be right, as a sentence without a full stop.
    pub problem: String,
}

impl InvalidField {
    /// An error of `field`.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}
