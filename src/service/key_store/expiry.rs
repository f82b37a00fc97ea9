//! Rules for the expiry that a caller requests.

use std::time::Duration;

use crate::domain::{InvalidField, Timestamp};
use crate::service::Expiry;

/// Returns the time at which a key with this expiry expires.
///
/// # Errors
/// It is not in the future, or is later than the year 9999.
pub(super) fn resolve(expiry: Option<Expiry>, now: Timestamp) -> Result<Option<Timestamp>, InvalidField> {
    match expiry {
        None => Ok(None),
        Some(Expiry::At(instant)) => {
            check_future("expire_time", Some(instant), now)?;
            Ok(Some(instant))
        }
        Some(Expiry::After(ttl)) => {
            if ttl < Duration::from_micros(1) {
                return Err(InvalidField::new("ttl", "must be more than zero"));
            }
            let end = now.checked_add(ttl);
            Ok(Some(end.ok_or_else(|| {
                InvalidField::new("ttl", "too long; the key must expire before the year 10000")
            })?))
        }
    }
}

/// Checks that `instant`, the value of `field`, is in the future.
///
/// # Errors
/// It is not.
pub(crate) fn check_future(
    field: &str,
    instant: Option<Timestamp>,
    now: Timestamp,
) -> Result<(), InvalidField> {
    if instant.is_some_and(|instant| instant <= now) {
        return Err(InvalidField::new(field, "must be in the future; to disable a key now, revoke it"));
    }
    Ok(())
}
