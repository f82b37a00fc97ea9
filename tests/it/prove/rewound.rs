//! Failovers that lose changes. The database is killed during changes, and an older copy replaces it, as in a
//! failover to a standby that lagged. New changes immediately use the revisions of the lost changes again.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keyvouch::conformance::api::new_key;
use keyvouch::grpc::pb;
use tokio::sync::Mutex;

use super::BOUND;
use super::fleet::{Fleet, REPLICAS};
use super::schedule::Random;

/// Number of keys that exist before and after the failover.
const KEPT: usize = 6;
/// Timeout for a replica to reconnect to the database and to begin a new epoch.
const RECOVERY: Duration = Duration::from_secs(30);

/// Counts of one failover.
#[derive(Default)]
pub(super) struct Outcome {
    lost_keys: usize,
    revocations: usize,
    validations: usize,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lost_keys, revocations, validations } = self;
        write!(f, "{lost_keys} lost keys, {revocations} revocations, {validations} validations")
    }
}

#[expect(clippy::disallowed_methods, reason = "the proof measures time by itself")]
fn now() -> Instant {
    Instant::now()
}

/// Causes one failover that loses changes.
pub(super) async fn lose_changes(fleet: &Fleet, random: &mut Random) -> Outcome {
    let mut kept = Vec::new();
    for _ in 0..KEPT {
        kept.push(fleet.api(0).create(new_key()).await);
    }
    fleet.copy_database().await;
    for replica in 0..REPLICAS {
        create_eventually(fleet, replica).await;
        for (_, secret) in &kept {
            // This also caches the key at each replica.
            assert_eq!(validate_eventually(fleet, replica, secret).await, pb::Reason::Valid);
        }
    }

    // All replicas make changes until the database is killed.
    let is_over = Arc::new(AtomicBool::new(false));
    let lost = Arc::new(Mutex::new(Vec::new()));
    let changing: Vec<_> = (0..REPLICAS)
        .map(|replica| {
            let (fleet, kept) = (fleet.clone(), kept.clone());
            let (is_over, lost) = (Arc::clone(&is_over), Arc::clone(&lost));
            tokio::spawn(change(fleet, replica, kept, is_over, lost))
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300 + random.below(400))).await;
    fleet.kill_database().await;
    is_over.store(true, Ordering::Relaxed);
    for changing in changing {
        changing.await.unwrap();
    }
    fleet.start_copy().await;
    let lost = Arc::try_unwrap(lost).unwrap().into_inner();
    assert!(!lost.is_empty(), "the failover lost no change");

    // Each remaining key is revoked at some replica.
    let mut outcome = Outcome { lost_keys: lost.len(), ..Outcome::default() };
    let mut revoked = Vec::new();
    for (nth, (key, secret)) in kept.iter().enumerate() {
        let replica = (nth + usize::try_from(random.below(3)).unwrap()) % REPLICAS;
        revoke(fleet, replica, &key.id).await;
        let acknowledged = now();
        // The replica that acknowledged the revocation denies the key at once.
        let reason = validate(fleet, replica, secret).await;
        assert!(
            matches!(reason, None | Some(pb::Reason::Revoked)),
            "{reason:?} at the replica that revoked the key"
        );
        outcome.revocations += 1;
        revoked.push((secret, acknowledged));
    }
    let all_revoked = now();
    // After the bound, all replicas deny the revoked keys and those whose creation was lost.
    while all_revoked.elapsed() < BOUND * 4 {
        for replica in 0..REPLICAS {
            for (secret, acknowledged) in &revoked {
                let begun = now();
                let reason = validate(fleet, replica, secret).await;
                outcome.validations += 1;
                let is_late = begun.duration_since(*acknowledged) >= BOUND;
                assert!(
                    !is_late || matches!(reason, None | Some(pb::Reason::Revoked)),
                    "{reason:?} after the bound"
                );
            }
            for secret in lost.iter().step_by(lost.len().div_ceil(20)) {
                let begun = now();
                let reason = validate(fleet, replica, secret).await;
                outcome.validations += 1;
                let is_late = begun.duration_since(all_revoked) >= BOUND;
                assert!(
                    !is_late || matches!(reason, None | Some(pb::Reason::NotFound)),
                    "{reason:?} for a key whose creation was lost"
                );
            }
        }
    }
    // All replicas recover, so validations no longer fail.
    for replica in 0..REPLICAS {
        for (_, secret) in &kept {
            assert_eq!(validate_eventually(fleet, replica, secret).await, pb::Reason::Revoked);
        }
    }
    outcome
}

/// Changes keys and creates others until it is stopped.
async fn change(
    fleet: Fleet,
    replica: usize,
    kept: Vec<(pb::Key, String)>,
    is_over: Arc<AtomicBool>,
    lost: Arc<Mutex<Vec<String>>>,
) {
    let mut number = 0;
    while !is_over.load(Ordering::Relaxed) {
        number += 1;
        let created = fleet.api(replica).key_store().create_key(new_key()).await;
        if let Ok(created) = created {
            let secret = created.into_inner().secret;
            // The replica that created the key caches it.
            let _ = validate(&fleet, replica, &secret).await;
            lost.lock().await.push(secret);
        }
        let (key, secret) = &kept[number % KEPT];
        let update = pb::UpdateKeyRequest {
            key: Some(pb::Key { id: key.id.clone(), name: format!("name {number}"), ..pb::Key::default() }),
            update_mask: Some(prost_types::FieldMask { paths: vec!["name".into()] }),
            expected_revision: None,
        };
        if fleet.api(replica).key_store().update_key(update).await.is_ok() {
            let _ = validate(&fleet, (replica + 1) % REPLICAS, secret).await;
        }
    }
}

/// Returns the reason of the verdict, or `None` if it is undecided.
async fn validate(fleet: &Fleet, replica: usize, secret: &str) -> Option<pb::Reason> {
    let request = pb::ValidateRequest { secret: secret.to_owned(), ..pb::ValidateRequest::default() };
    let answer = fleet.api(replica).validator().validate(request).await;
    answer.ok().map(|answer| answer.into_inner().reason())
}

async fn validate_eventually(fleet: &Fleet, replica: usize, secret: &str) -> pb::Reason {
    let begun = now();
    loop {
        if let Some(reason) = validate(fleet, replica, secret).await {
            return reason;
        }
        assert!(begun.elapsed() < RECOVERY, "replica {replica} does not decide");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn create_eventually(fleet: &Fleet, replica: usize) {
    let begun = now();
    while let Err(error) = fleet.api(replica).key_store().create_key(new_key()).await {
        assert!(begun.elapsed() < RECOVERY, "{error:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn revoke(fleet: &Fleet, replica: usize, id: &str) {
    let begun = now();
    loop {
        let request = pb::RevokeKeyRequest { id: id.to_owned(), reason: "leaked".into() };
        match fleet.api(replica).key_store().revoke_key(request).await {
            Ok(_) => return,
            Err(error) => assert!(begun.elapsed() < RECOVERY, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
