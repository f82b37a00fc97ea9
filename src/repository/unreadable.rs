//! Records and events that can't be read. They are skipped, counted and logged.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{ErrorKind, RepositoryError, Result};
use crate::domain::{
    ApiKey, ChangeId, Description, InvalidField, KeyHash, KeyId, KeyName, KeyPrefix, Metadata, OwnerId,
    Revision, Revocation, ScopeSet, Timestamp,
};
use crate::telemetry::{LogLimit, error_chain};

static KEYS: AtomicU64 = AtomicU64::new(0);
static EVENTS: AtomicU64 = AtomicU64::new(0);

/// Returns the number of unreadable records and the number of unreadable events that were skipped since the
/// start of the process. Each occurrence counts.
#[must_use]
pub fn unreadable_counts() -> (u64, u64) {
    (KEYS.load(Ordering::Relaxed), EVENTS.load(Ordering::Relaxed))
}

/// Replaces a name or an owner that can't be read.
pub(super) const UNREADABLE: &str = "unreadable record";

/// Returns a revoked key with these readable values, and defaults for all others.
pub(super) fn revoked_key(
    id: KeyId,
    hash: KeyHash,
    owner_id: OwnerId,
    created_at: Timestamp,
    revocation: Revocation,
) -> Result<ApiKey> {
    let invalid = |error: InvalidField| RepositoryError::new(ErrorKind::Corrupt, error);
    Ok(ApiKey {
        id,
        hash,
        prefix: KeyPrefix::parse("prefix", "").map_err(invalid)?,
        name: KeyName::parse("name", UNREADABLE).map_err(invalid)?,
        description: Description::default(),
        owner_id,
        scopes: ScopeSet::default(),
        metadata: Metadata::default(),
        created_at,
        updated_at: revocation.at,
        expires_at: None,
        revocation: Some(revocation),
        rotated_from: None,
        replaced_by: None,
        revision: Revision::NONE,
        nonce: ChangeId::UNKNOWN_NONCE,
    })
}

/// Counts and logs a record that a listing skipped.
pub(super) fn skipped_key(id: KeyId, error: &RepositoryError) {
    static LIMIT: LogLimit = LogLimit::new();
    KEYS.fetch_add(1, Ordering::Relaxed);
    if let Some(left_out) = LIMIT.admit() {
        tracing::error!(key = %id, error = %error_chain(error), left_out, "a stored key can't be read and was skipped");
    }
}

/// Counts and logs an event that was skipped.
pub(super) fn skipped_event(revision: Revision, error: &RepositoryError) {
    static LIMIT: LogLimit = LogLimit::new();
    EVENTS.fetch_add(1, Ordering::Relaxed);
    if let Some(left_out) = LIMIT.admit() {
        tracing::error!(
            %revision,
            error = %error_chain(error),
            left_out,
            "a stored event can't be read and was skipped"
        );
    }
}
