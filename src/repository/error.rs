//! What can go wrong in a store, as far as callers act on it.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// The result of a repository's method.
pub type Result<T> = std::result::Result<T, RepositoryError>;

/// What callers tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The id or the hash of a new key is taken.
    AlreadyExists,
    /// The hash of a new key belonged to one that was revoked and deleted.
    RevokedHash,
    /// There is no such key.
    NotFound,
    /// The key was changed since the expected revision.
    Conflict,
    /// The update would change what must not change.
    Refused,
    /// This backend has no such function.
    NotOffered,
    /// Events after this position of the change feed may be missing.
    PositionLost,
    /// Too much is asked of the store at this moment. Trying again later may help.
    Overloaded,
    /// The store can't be reached or takes no writes. Trying again later may help.
    Unavailable,
    /// The store did not answer in time.
    Timeout,
    /// A stored record can't be read.
    Corrupt,
    /// Anything else: a fault of the backend or of Keyvouch.
    Internal,
}

impl ErrorKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::AlreadyExists => "a key with this id or hash exists",
            Self::RevokedHash => "a key with this hash was revoked and deleted",
            Self::NotFound => "there is no such key",
            Self::Conflict => "the key was changed meanwhile",
            Self::Refused => "the change is not allowed",
            Self::NotOffered => "this storage backend does not offer that",
            Self::PositionLost => "the position in the change feed is too old",
            Self::Overloaded => "too much is asked of the store",
            Self::Unavailable => "the store is unavailable",
            Self::Timeout => "the store did not answer in time",
            Self::Corrupt => "a stored record can't be read",
            Self::Internal => "the store failed",
        }
    }
}

/// A kind that callers act on, and its cause for the log. `Display` leaves the cause out, and no cause holds a key,
/// a hash, a password or a URL with one.
/// Clones share the cause: one failure can be the answer to several calls.
#[derive(Clone, Debug)]
pub struct RepositoryError {
    kind: ErrorKind,
    is_unapplied: bool,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl RepositoryError {
    /// An error with the cause `source`: an error or a text.
    pub fn new(kind: ErrorKind, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind, is_unapplied: false, source: Some(Arc::from(source.into())) }
    }

    /// An error that this backend lacks `function`.
    #[must_use]
    pub fn not_offered(function: &'static str) -> Self {
        Self::new(ErrorKind::NotOffered, function)
    }

    /// What callers act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Declares that the change was certainly not made. Without it, a change that failed with [`ErrorKind::Unavailable`],
    /// [`ErrorKind::Timeout`] or [`ErrorKind::Internal`] may have been made.
    #[must_use]
    pub fn unapplied(self) -> Self {
        Self { is_unapplied: true, ..self }
    }

    /// Returns whether the change was certainly not made.
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

/// The task of a call did not come to its end; its panic is in the log.
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
