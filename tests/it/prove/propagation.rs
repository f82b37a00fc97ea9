//! Measures how long it takes until every replica denies a key whose revocation was acknowledged.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keyvouch::conformance::api::new_key;

use super::BOUND;
use super::fleet::{Fleet, REPLICAS};
use crate::support::until;

/// Sorted durations.
pub(super) struct Times(Vec<Duration>);

impl Times {
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    fn at(&self, percent: usize) -> f64 {
        let index = (self.0.len() * percent / 100).min(self.0.len() - 1);
        self.0[index].as_secs_f64() * 1_000.0
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms", self.at(50), self.at(99), self.at(100))
    }
}

#[expect(clippy::disallowed_methods, reason = "this is a measurement")]
fn now() -> Instant {
    Instant::now()
}

/// Revokes keys one after another at the first replica, while the replicas answer `rate` validations per
/// second. Returns the times from each acknowledgement until the first denial by each other replica.
pub(super) async fn measure(fleet: &Fleet, revocations: u64, rate: u64) -> Times {
    let is_over = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(load(fleet.clone(), rate, Arc::clone(&is_over)));
    let mut times = Vec::new();
    for number in 0..revocations {
        let (key, secret) = fleet.api(0).create(new_key()).await;
        // All replicas have to cache the key first.
        for replica in 1..REPLICAS {
            until("the replica to allow the key", async || fleet.api(replica).validate(&secret).await.valid)
                .await;
        }
        // The revocations must not be in step with the polls.
        tokio::time::sleep(Duration::from_millis(number * 137 % 500)).await;
        fleet.api(0).revoke(&key.id, "").await;
        let acknowledged = now();
        let denied = (1..REPLICAS).map(|replica| {
            let (fleet, secret) = (fleet.clone(), secret.clone());
            tokio::spawn(async move {
                let denied = async {
                    while fleet.api(replica).validate(&secret).await.valid {
                        tokio::time::sleep(Duration::from_micros(200)).await;
                    }
                };
                tokio::time::timeout(BOUND * 10, denied).await.unwrap();
                now().duration_since(acknowledged)
            })
        });
        for denied in denied.collect::<Vec<_>>() {
            times.push(denied.await.unwrap());
        }
    }
    is_over.store(true, Ordering::Relaxed);
    load.await.unwrap();
    times.sort();
    Times(times)
}

/// Validates at all replicas in turn, `rate` times per second in total, until `is_over` is set.
async fn load(fleet: Fleet, rate: u64, is_over: Arc<AtomicBool>) {
    let (_, secret) = fleet.api(0).create(new_key()).await;
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let mut replica = 0;
    while !is_over.load(Ordering::Relaxed) {
        ticks.tick().await;
        for _ in 0..rate / 100 {
            replica = (replica + 1) % REPLICAS;
            let (fleet, secret) = (fleet.clone(), secret.clone());
            tokio::spawn(async move { drop(fleet.api(replica).validate(&secret).await) });
        }
    }
}
