//! What a service answers instead of a result.

use crate::domain::{EntropyError, InvalidField, KeyId, RotationRefused, Scope};
use crate::repository::RepositoryError;

/// Why a call was not answered. A denied key is no error: it is a [`Validation`](super::Validation).
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The caller gave a wrong value.
    #[error(transparent)]
    InvalidField(#[from] InvalidField),
    /// The key is not in a state that allows this.
    #[error(transparent)]
    Precondition(#[from] Precondition),
    /// The caller would grant a reserved scope that he does not hold.
    #[error("only who holds the reserved scope {0} can grant it")]
    ScopeNotGrantable(Scope),
    /// An earlier request with the same `request_id` made this key.
    #[error("an earlier request with this request_id made the key {0}")]
    AlreadyApplied(KeyId),
    /// The store did not do it.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// There were no random bytes for a new key.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
}

/// A state of the key that forbids the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Precondition {
    /// The key can't be rotated.
    #[error(transparent)]
    Rotation(#[from] RotationRefused),
    /// The key was replaced and would live longer.
    #[error("the expiry of a replaced key can't be extended: use its successor {0}")]
    ReplacedKeyExtended(KeyId),
}

impl From<RotationRefused> for ServiceError {
    fn from(refused: RotationRefused) -> Self {
        Self::Precondition(refused.into())
    }
}
