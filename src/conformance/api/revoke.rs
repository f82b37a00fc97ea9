//! Tests of `RevokeKey`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::{Api, new_key, wrong_field};
use crate::grpc::pb;

/// The next validation and all later ones are denied.
pub async fn it_holds_at_once_and_for_good(api: Api) {
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
    assert_eq!(wrong_field(api.key_store().revoke_key(too_long).await), "reason");
}

/// The first time and reason are kept.
pub async fn it_is_idempotent(api: Api) {
    let (key, _) = api.create(new_key()).await;
    let first = api.revoke(&key.id, "first").await;
    assert_eq!(api.revoke(&key.id, "second").await, first);
}

/// Many concurrent callers validate the key while it is revoked. A validation that begins after the response
/// is denied.
pub async fn no_call_that_begins_after_it_is_allowed(api: Api) {
    let (key, secret) = api.create(new_key()).await;
    let is_revoked = Arc::new(AtomicBool::new(false));
    let allowed_before = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..50)
        .map(|_| {
            let (api, secret) = (api.clone(), secret.clone());
            let (is_revoked, allowed_before) = (Arc::clone(&is_revoked), Arc::clone(&allowed_before));
            tokio::spawn(async move {
                let mut refused_after = 0;
                while refused_after < 5 {
                    let began_after = is_revoked.load(Ordering::SeqCst);
                    let is_allowed = api.validate(&secret).await.valid;
                    assert!(!(began_after && is_allowed), "a revoked key was allowed");
                    allowed_before.fetch_add(usize::from(is_allowed), Ordering::SeqCst);
                    refused_after += u32::from(began_after);
                }
            })
        })
        .collect();
    while allowed_before.load(Ordering::SeqCst) < 50 {
        tokio::task::yield_now().await;
    }
    api.revoke(&key.id, "leaked").await;
    is_revoked.store(true, Ordering::SeqCst);
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(api.reason(&secret).await, pb::Reason::Revoked);
}
