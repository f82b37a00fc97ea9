//! Errors of the services.

use crate::domain::{EntropyError, InvalidField, InvalidFields, KeyId, RotationRefused, Scope};
use crate::repository::RepositoryError;

/// The reason why a call failed. A denied key is not an error but a [`Validation`](super::Validation).
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// One or more fields have invalid values.
    #[error(transparent)]
    InvalidFields(#[from] InvalidFields),
    /// The state of the key does not allow the operation.
    #[error(transparent)]
    Precondition(#[from] Precondition),
    /// The call would grant a reserved scope that the caller does not hold.
    #[error("the caller can't grant the reserved scope {0}, because it does not hold it")]
    ScopeNotGrantable(Scope),
    /// An earlier request with the same `request_id` has made this change. The id is that of the key it
    /// created.
    #[error("request_id: an earlier request with this id created the key {0}")]
    AlreadyApplied(KeyId),
    /// The repository failed, or rejected the operation.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The random number generator failed.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
}

/// A state of the key that does not allow the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Precondition {
    /// The key can't be rotated.
    #[error(transparent)]
    Rotation(#[from] RotationRefused),
    /// The key was replaced, and the update would extend its lifetime.
    #[error("the expiry of a replaced key can't be extended; use its successor {0}")]
    ReplacedKeyExtended(KeyId),
}

impl From<InvalidField> for ServiceError {
    fn from(field: InvalidField) -> Self {
        Self::InvalidFields(field.into())
    }
}

impl From<RotationRefused> for ServiceError {
    fn from(rejection: RotationRefused) -> Self {
        Self::Precondition(rejection.into())
    }
}
