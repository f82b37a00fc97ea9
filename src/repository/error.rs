//! Errors of repositories, classified by how callers react to them.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// The result of a repository's method.
pub type Result<T> = std::result::Result<T, RepositoryError>;

/// The kinds of errors that callers distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A key with the id or the hash of a new key exists already.
    AlreadyExists,
    /// The hash of a new key belonged to a key that was revoked and deleted.
    RevokedHash,
    /// The key does not exist.
    NotFound,
    /// The key was changed since the expected revision.
    Conflict,
    /// The update would change an immutable field.
    Refused,
    /// The backend does not offer this function.
    NotOffered,
    /// Events after this position of the change feed may be missing.
    PositionLost,
    /// The backend has too many requests at this moment. A later retry may succeed.
    Overloaded,
    /// The backend is unreachable or rejects writes. A later retry may succeed.
    Unavailable,
    /// The backend can't be used with these settings, or the settings are not valid. Only an operator can change
    /// that.
    Unusable,
    /// The backend did not answer before the deadline.
    Timeout,
    /// A stored record can't be read.
    Corrupt,
    /// Any other failure: a fault of the backend or of Keyvouch.
    Internal,
}

impl ErrorKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::AlreadyExists => "a key with this id or hash exists",
            Self::RevokedHash => "a key with this hash was revoked and deleted",
            Self::NotFound => "key not found",
            Self::Conflict => "the key was changed by another call",
            Self::Refused => "the change is not allowed",
            Self::NotOffered => "the backend does not support this operation",
            Self::PositionLost => "events after the position in the change feed may be missing",
            Self::Overloaded => "the server is overloaded, or a limit is reached",
            Self::Unavailable => "the backend is unavailable",
            Self::Unusable => "the backend can't be used with these settings",
            Self::Timeout => "the backend did not respond in time",
            Self::Corrupt => "a stored record can't be read",
            Self::Internal => "the backend failed",
        }
    }
}

/// An error of a repository: a kind, which callers act on, and a cause for the log. `Display` shows only the
/// kind. Causes never contain a key, a hash, a password or a URL with a password. Clones share the cause,
/// because one failure can be the result of several calls.
#[derive(Clone, Debug)]
pub struct RepositoryError {
    kind: ErrorKind,
    is_unapplied: bool,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl RepositoryError {
    /// Returns an error with the cause `source`, which is an error or a text.
    pub fn new(kind: ErrorKind, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind, is_unapplied: false, source: Some(Arc::from(source.into())) }
    }

    /// Returns an error stating that the backend does not offer `function`.
    #[must_use]
    pub fn not_offered(function: &'static str) -> Self {
        Self::new(ErrorKind::NotOffered, function)
    }

    /// Returns the kind of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Declares that the change was certainly not made. Without this declaration, a change that failed with
    /// [`ErrorKind::Unavailable`], [`ErrorKind::Unusable`], [`ErrorKind::Timeout`] or [`ErrorKind::Internal`] may
    /// have been made.
    #[must_use]
    pub fn unapplied(self) -> Self {
        Self { is_unapplied: true, ..self }
    }

    /// Returns whether the outcome of a change that failed with this error is unknown.
    pub(crate) fn leaves_outcome_unknown(&self) -> bool {
        !self.is_unapplied
            && matches!(
                self.kind,
                ErrorKind::Unavailable | ErrorKind::Unusable | ErrorKind::Timeout | ErrorKind::Internal
            )
    }

    /// Returns whether the change was certainly not made. False means that the outcome is unknown or that the
    /// change is not declared [`unapplied`](Self::unapplied).
    #[must_use]
    pub fn is_unapplied(&self) -> bool {
        self.is_unapplied
    }
}

impl From<ErrorKind> for RepositoryError {
    fn from(kind: ErrorKind) -> Self {
        Self { kind, is_unapplied: false, source: None }
    }
}

/// Converts the failure of a task that panicked or was aborted before it returned. A panic is logged
/// separately.
impl From<tokio::task::JoinError> for RepositoryError {
    fn from(stopped: tokio::task::JoinError) -> Self {
        Self::new(ErrorKind::Internal, stopped)
    }
}

impl From<crate::domain::EntropyError> for RepositoryError {
    fn from(error: crate::domain::EntropyError) -> Self {
        Self::new(ErrorKind::Internal, error)
    }
}

impl From<crate::domain::ImmutableField> for RepositoryError {
    fn from(error: crate::domain::ImmutableField) -> Self {
        Self::new(ErrorKind::Refused, error)
    }
}

impl fmt::Display for RepositoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.as_str())
    }
}

impl Error for RepositoryError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
