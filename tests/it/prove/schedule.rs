//! Random schedules. Each is a sequence of calls about one key and its successors.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use keyvouch::conformance::api::new_key;
use keyvouch::grpc::pb;
use tokio::sync::{Mutex, Semaphore};
use tonic::{Code, Request, Status};

use super::BOUND;
use super::fleet::{Fleet, REPLICAS};
use super::history::{History, Response};

/// Timeout of each call.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// Random numbers that are determined by a seed: `SplitMix64`.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    pub(super) fn one_of<'t, T>(&mut self, items: &'t [T]) -> &'t T {
        let bound = u64::try_from(items.len()).unwrap();
        &items[usize::try_from(self.below(bound)).unwrap()]
    }
}

/// Counts and violations of all schedules.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) schedules: u64,
    pub(super) allowed: u64,
    pub(super) denied: u64,
    pub(super) undecided: u64,
    pub(super) changes: u64,
    pub(super) uncertain: u64,
    pub(super) violations: Vec<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} schedules, {} changes acknowledged and {} uncertain; {} validations allowed, {} denied, {} undecided; {} violations",
            self.schedules,
            self.changes,
            self.uncertain,
            self.allowed,
            self.denied,
            self.undecided,
            self.violations.len()
        )
    }
}

#[derive(Default)]
struct Counts {
    allowed: AtomicU64,
    denied: AtomicU64,
    undecided: AtomicU64,
    changes: AtomicU64,
    uncertain: AtomicU64,
    violations: std::sync::Mutex<Vec<String>>,
}

/// Runs `schedules`, of which `concurrency` at the same time.
pub(super) async fn run_all(fleet: &Fleet, schedules: u64, concurrency: u64, seed: u64) -> Outcome {
    let counts = Arc::new(Counts::default());
    let slots = Arc::new(Semaphore::new(usize::try_from(concurrency).unwrap()));
    let mut running = Vec::new();
    for number in 0..schedules {
        let slot = Arc::clone(&slots).acquire_owned().await.unwrap();
        let (fleet, counts) = (fleet.clone(), Arc::clone(&counts));
        running.push(tokio::spawn(async move {
            Schedule::new(fleet, counts, Random::new(seed ^ (number + 1) << 20)).run().await;
            drop(slot);
        }));
    }
    for schedule in running {
        schedule.await.unwrap();
    }
    let count = |it: &AtomicU64| it.load(Ordering::Relaxed);
    Outcome {
        schedules,
        allowed: count(&counts.allowed),
        denied: count(&counts.denied),
        undecided: count(&counts.undecided),
        changes: count(&counts.changes),
        uncertain: count(&counts.uncertain),
        violations: std::mem::take(&mut counts.violations.lock().unwrap()),
    }
}

#[expect(clippy::disallowed_methods, reason = "the order of requests and responses is checked")]
fn now() -> Instant {
    Instant::now()
}

/// Makes random calls about one key.
struct Schedule {
    fleet: Fleet,
    counts: Arc<Counts>,
    random: Random,
}

/// A key, and its known changes.
struct TrackedKey {
    id: String,
    secret: String,
    history: Mutex<History>,
}

impl Schedule {
    fn new(fleet: Fleet, counts: Arc<Counts>, random: Random) -> Self {
        Self { fleet, counts, random }
    }

    async fn run(mut self) {
        let Some(mut key) = self.create().await else { return };
        for _ in 0..2 + self.random.below(4) {
            self.validate_some(&key).await;
            match self.random.below(8) {
                0..=2 => self.update(&key).await,
                3 => {
                    if let Some(successor) = self.rotate(&key).await {
                        self.validate_some(&key).await;
                        key = successor;
                    }
                }
                4 => self.wait().await,
                5 => self.update_or_race(&key).await,
                _ => {}
            }
        }
        self.validate_some(&key).await;
        for _ in 0..=self.random.below(2) {
            if self.random.below(3) == 0 {
                self.delete(&key).await;
            } else {
                self.revoke(&key).await;
            }
            self.validate_some(&key).await;
        }
        // After the bound, every replica has to reflect the changes.
        tokio::time::sleep(BOUND).await;
        for replica in 0..REPLICAS {
            self.validate(&key, replica).await;
        }
    }

    fn replica(&mut self) -> usize {
        *self.random.one_of(&[0, 1, 2])
    }

    async fn wait(&mut self) {
        tokio::time::sleep(Duration::from_millis(self.random.below(1_200))).await;
    }

    async fn create(&mut self) -> Option<TrackedKey> {
        let replica = self.replica();
        let mut key_store = self.fleet.api(replica).key_store();
        let created = self.acknowledged(key_store.create_key(request(new_key())).await)?;
        let mut history = History::default();
        history.created(replica, now());
        Some(TrackedKey { id: created.key?.id, secret: created.secret, history: Mutex::new(history) })
    }

    async fn update(&mut self, key: &TrackedKey) {
        let replica = self.replica();
        let name = format!("name {}", self.random.below(1_000_000));
        let mut key_store = self.fleet.api(replica).key_store();
        let update = pb::UpdateKeyRequest {
            key: Some(pb::Key { id: key.id.clone(), name, ..pb::Key::default() }),
            update_mask: Some(prost_types::FieldMask { paths: vec!["name".into()] }),
            expected_revision: None,
        };
        if let Some(updated) = self.acknowledged(key_store.update_key(request(update)).await) {
            key.history.lock().await.updated(replica, now(), updated.key.unwrap().revision);
        }
    }

    async fn rotate(&mut self, key: &TrackedKey) -> Option<TrackedKey> {
        let replica = self.replica();
        let mut key_store = self.fleet.api(replica).key_store();
        key.history.lock().await.begin_revoke(now());
        let rotate = pb::RotateKeyRequest { id: key.id.clone(), ..pb::RotateKeyRequest::default() };
        let rotated = self.acknowledged(key_store.rotate_key(request(rotate)).await)?;
        key.history.lock().await.ended(replica, now());
        let mut history = History::default();
        history.created(replica, now());
        Some(TrackedKey { id: rotated.key?.id, secret: rotated.secret, history: Mutex::new(history) })
    }

    async fn revoke(&mut self, key: &TrackedKey) {
        let replica = self.replica();
        self.revoke_at(key, replica).await;
    }

    async fn revoke_at(&self, key: &TrackedKey, replica: usize) {
        key.history.lock().await.begin_revoke(now());
        let mut key_store = self.fleet.api(replica).key_store();
        let revoke = pb::RevokeKeyRequest { id: key.id.clone(), reason: "proof".into() };
        if self.acknowledged(key_store.revoke_key(request(revoke)).await).is_some() {
            key.history.lock().await.ended(replica, now());
        }
    }

    /// Updates the key, or sometimes revokes, updates and validates it concurrently.
    async fn update_or_race(&mut self, key: &TrackedKey) {
        if self.random.below(4) != 0 {
            return self.update(key).await;
        }
        let (one, other) = (self.replica(), self.replica());
        let mut updater = Schedule::new(self.fleet.clone(), Arc::clone(&self.counts), self.random.clone());
        tokio::join!(self.revoke_at(key, one), updater.update(key), self.validate(key, other));
    }

    async fn delete(&mut self, key: &TrackedKey) {
        let replica = self.replica();
        key.history.lock().await.begin_delete(now());
        let mut key_store = self.fleet.api(replica).key_store();
        let delete = pb::DeleteKeyRequest { id: key.id.clone(), expected_revision: None };
        let deleted = key_store.delete_key(request(delete)).await;
        // A key that was not found is deleted as well.
        let is_gone = deleted.as_ref().is_err_and(|error| error.code() == Code::NotFound);
        if self.acknowledged(deleted).is_some() || is_gone {
            key.history.lock().await.ended(replica, now());
        }
    }

    async fn validate_some(&mut self, key: &TrackedKey) {
        for _ in 0..=self.random.below(6) {
            let replica = self.replica();
            self.validate(key, replica).await;
            if self.random.below(3) == 0 {
                tokio::time::sleep(Duration::from_millis(self.random.below(100))).await;
            }
        }
    }

    async fn validate(&self, key: &TrackedKey, replica: usize) {
        let message = pb::ValidateRequest { secret: key.secret.clone(), ..pb::ValidateRequest::default() };
        let sent_at = now();
        let validated = self.fleet.api(replica).validator().validate(request(message)).await;
        let received_at = now();
        let verdict = match validated {
            Ok(response) => response.into_inner(),
            Err(status) => {
                self.counts.undecided.fetch_add(1, Ordering::Relaxed);
                return self.check_failure(&status);
            }
        };
        let count = if verdict.valid { &self.counts.allowed } else { &self.counts.denied };
        count.fetch_add(1, Ordering::Relaxed);
        let revision = verdict.key.as_ref().map_or(0, |key| key.revision);
        let response = Response { replica, sent_at, received_at, reason: verdict.reason(), revision };
        if let Some(violation) = key.history.lock().await.violation(&response) {
            self.counts.violations.lock().unwrap().push(format!("{}: {violation}", key.id));
        }
    }

    /// Returns the response to a change, or `None` if the change failed or its outcome is unknown.
    fn acknowledged<T>(&self, outcome: Result<tonic::Response<T>, Status>) -> Option<T> {
        match outcome {
            Ok(response) => {
                self.counts.changes.fetch_add(1, Ordering::Relaxed);
                Some(response.into_inner())
            }
            Err(status) => {
                self.counts.uncertain.fetch_add(1, Ordering::Relaxed);
                if !matches!(status.code(), Code::NotFound | Code::Aborted | Code::FailedPrecondition) {
                    self.check_failure(&status);
                }
                None
            }
        }
    }

    /// Checks that a failed call has one of the statuses of an outage.
    fn check_failure(&self, status: &Status) {
        let is_outage = matches!(
            status.code(),
            Code::Unavailable
                | Code::DeadlineExceeded
                | Code::ResourceExhausted
                | Code::Cancelled
                | Code::Unknown
        );
        if !is_outage {
            let log = self.fleet.defects_in_logs();
            let violation =
                format!("an outage was reported as {}: {}; log: {log}", status.code(), status.message());
            self.counts.violations.lock().unwrap().push(violation);
        }
    }
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}
