//! Tests of `RevokeKey`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use super::{Api, invalid_field, new_key};
use crate::grpc::pb;

/// The next validation and all later ones are denied. A reason that is too long is rejected.
pub async fn a_revocation_denies_all_later_validations(api: Api) {
    let (key, secret) = api.create(new_key()).await;
    assert_eq!(api.reason(&secret).await, pb::Reason::Valid);
    let revoked = api.revoke(&key.id, "leaked").await;
    assert_eq!(revoked.state(), pb::KeyState::Revoked);
    assert_eq!(revoked.revoke_reason, "leaked");
    assert!(revoked.revoke_time.is_some());
    for _ in 0..10 {
        assert_eq!(api.reason(&secret).await, pb::Reason::Revoked);
    }
    let too_long = pb::RevokeKeyRequest { id: key.id, reason: "r".repeat(257) };
    assert_eq!(invalid_field(api.key_store().revoke_key(too_long).await), "reason");
}

/// A second revocation keeps the time and reason of the first.
pub async fn a_revocation_is_idempotent(api: Api) {
    let (key, _) = api.create(new_key()).await;
    let first = api.revoke(&key.id, "first").await;
    assert_eq!(api.revoke(&key.id, "second").await, first);
}

/// Many concurrent callers validate the key while it is revoked. A validation that begins after the response
/// is denied.
pub async fn a_revocation_denies_concurrent_callers(api: Api) {
    let (key, secret) = api.create(new_key()).await;
    let is_revoked = Arc::new(AtomicBool::new(false));
    let allowed_before = Arc::new(watch::Sender::new(0_usize));
    let callers: Vec<_> = (0..50)
        .map(|_| {
            let (api, secret) = (api.clone(), secret.clone());
            let (is_revoked, allowed_before) = (Arc::clone(&is_revoked), Arc::clone(&allowed_before));
            tokio::spawn(async move {
                let mut denied_after = 0;
                while denied_after < 5 {
                    let began_after = is_revoked.load(Ordering::SeqCst);
                    let is_allowed = api.validate(&secret).await.valid;
                    assert!(!(began_after && is_allowed), "a revoked key was allowed");
                    allowed_before.send_modify(|allowed| *allowed += usize::from(is_allowed));
                    denied_after += u32::from(began_after);
                }
            })
        })
        .collect();
    allowed_before.subscribe().wait_for(|&allowed| allowed >= 50).await.unwrap();
    api.revoke(&key.id, "leaked").await;
    is_revoked.store(true, Ordering::SeqCst);
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(api.reason(&secret).await, pb::Reason::Revoked);
}
