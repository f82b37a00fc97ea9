//! Random schedules, each of which is the life of one key.

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
use super::history::{Answer, History};

/// Timeout of callers.
const PATIENCE: Duration = Duration::from_secs(3);

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
}

impl Random {
    pub(super) fn one_of<'t, T>(&mut self, things: &'t [T]) -> &'t T {
        let bound = u64::try_from(things.len()).unwrap();
        &things[usize::try_from(self.below(bound)).unwrap()]
    }
}

/// Results of all schedules.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) schedules: u64,
    pub(super) allowed: u64,
    pub(super) denied: u64,
    pub(super) undecided: u64,
    pub(super) changes: u64,
    pub(super) uncertain: u64,
    pub(super) violations: Vec<String>,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} schedules, {} changes answered and {} uncertain; {} validations allowed, {} denied, {} undecided; {} violations",
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

pub(super) async fn run_all(fleet: &Fleet, schedules: u64, at_once: u64, seed: u64) -> Told {
    let counts = Arc::new(Counts::default());
    let free = Arc::new(Semaphore::new(usize::try_from(at_once).unwrap()));
    let mut running = Vec::new();
    for number in 0..schedules {
        let place = Arc::clone(&free).acquire_owned().await.unwrap();
        let (fleet, counts) = (fleet.clone(), Arc::clone(&counts));
        running.push(tokio::spawn(async move {
            Life::new(fleet, counts, Random::new(seed ^ (number + 1) << 20)).run().await;
            drop(place);
        }));
    }
    for schedule in running {
        schedule.await.unwrap();
    }
    let count = |it: &AtomicU64| it.load(Ordering::Relaxed);
    Told {
        schedules,
        allowed: count(&counts.allowed),
        denied: count(&counts.denied),
        undecided: count(&counts.undecided),
        changes: count(&counts.changes),
        uncertain: count(&counts.uncertain),
        violations: std::mem::take(&mut counts.violations.lock().unwrap()),
    }
}

#[expect(clippy::disallowed_methods, reason = "the order of calls and answers is what is checked")]
fn now() -> Instant {
    Instant::now()
}

/// A key, and the source of its random calls.
struct Life {
    fleet: Fleet,
    counts: Arc<Counts>,
    random: Random,
}

/// A key that was created, and its known changes.
struct Known {
    id: String,
    secret: String,
    history: Mutex<History>,
}

impl Life {
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
                // A revocation races with an update at another replica.
                5 => {
                    self.revoke_while_it_is_updated(&key).await;
                }
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
        // After the bound, all replicas have to reflect the changes.
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

    async fn create(&mut self) -> Option<Known> {
        let replica = self.replica();
        let mut admin = self.fleet.api(replica).key_store();
        let created = self.admin(admin.create_key(request(new_key())).await)?;
        let mut history = History::default();
        history.created(replica, now());
        Some(Known { id: created.key?.id, secret: created.secret, history: Mutex::new(history) })
    }

    async fn update(&mut self, key: &Known) {
        let replica = self.replica();
        let name = format!("name {}", self.random.below(1_000_000));
        let mut admin = self.fleet.api(replica).key_store();
        let update = pb::UpdateKeyRequest {
            key: Some(pb::Key { id: key.id.clone(), name, ..pb::Key::default() }),
            update_mask: Some(prost_types::FieldMask { paths: vec!["name".into()] }),
            expected_revision: None,
        };
        if let Some(updated) = self.admin(admin.update_key(request(update)).await) {
            key.history.lock().await.updated(replica, now(), updated.key.unwrap().revision);
        }
    }

    async fn rotate(&mut self, key: &Known) -> Option<Known> {
        let replica = self.replica();
        let mut admin = self.fleet.api(replica).key_store();
        key.history.lock().await.begin_revoke(now());
        let rotate = pb::RotateKeyRequest { id: key.id.clone(), ..pb::RotateKeyRequest::default() };
        let rotated = self.admin(admin.rotate_key(request(rotate)).await)?;
        key.history.lock().await.ended(replica, now());
        let mut history = History::default();
        history.created(replica, now());
        Some(Known { id: rotated.key?.id, secret: rotated.secret, history: Mutex::new(history) })
    }

    async fn revoke(&mut self, key: &Known) {
        let replica = self.replica();
        self.revoke_at(key, replica).await;
    }

    async fn revoke_at(&self, key: &Known, replica: usize) {
        key.history.lock().await.begin_revoke(now());
        let mut admin = self.fleet.api(replica).key_store();
        let revoke = pb::RevokeKeyRequest { id: key.id.clone(), reason: "proof".into() };
        if self.admin(admin.revoke_key(request(revoke)).await).is_some() {
            key.history.lock().await.ended(replica, now());
        }
    }

    async fn revoke_while_it_is_updated(&mut self, key: &Known) {
        if self.random.below(4) != 0 {
            return self.update(key).await;
        }
        let (one, other) = (self.replica(), self.replica());
        let mut updater = Life::new(self.fleet.clone(), Arc::clone(&self.counts), self.random.clone());
        tokio::join!(self.revoke_at(key, one), updater.update(key), self.validate(key, other));
    }

    async fn delete(&mut self, key: &Known) {
        let replica = self.replica();
        key.history.lock().await.begin_delete(now());
        let mut admin = self.fleet.api(replica).key_store();
        let delete = pb::DeleteKeyRequest { id: key.id.clone(), expected_revision: None };
        let deleted = admin.delete_key(request(delete)).await;
        // A key that was not found is deleted as well.
        let is_gone = deleted.as_ref().is_err_and(|error| error.code() == Code::NotFound);
        if self.admin(deleted).is_some() || is_gone {
            key.history.lock().await.ended(replica, now());
        }
    }

    async fn validate_some(&mut self, key: &Known) {
        for _ in 0..=self.random.below(6) {
            let replica = self.replica();
            self.validate(key, replica).await;
            if self.random.below(3) == 0 {
                tokio::time::sleep(Duration::from_millis(self.random.below(100))).await;
            }
        }
    }

    async fn validate(&self, key: &Known, replica: usize) {
        let ask = pb::ValidateRequest { secret: key.secret.clone(), ..pb::ValidateRequest::default() };
        let asked_at = now();
        let answer = self.fleet.api(replica).validator().validate(request(ask)).await;
        let answered_at = now();
        let answer = match answer {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                self.counts.undecided.fetch_add(1, Ordering::Relaxed);
                return self.check_undecided(&status);
            }
        };
        let count = if answer.valid { &self.counts.allowed } else { &self.counts.denied };
        count.fetch_add(1, Ordering::Relaxed);
        let revision = answer.key.as_ref().map_or(0, |key| key.revision);
        let answer = Answer { replica, asked_at, answered_at, reason: answer.reason(), revision };
        if let Some(violation) = key.history.lock().await.violation(&answer) {
            self.counts.violations.lock().unwrap().push(format!("{}: {violation}", key.id));
        }
    }

    /// Returns the response to a change, or `None` if the change failed or its outcome is unknown.
    fn admin<T>(&self, answer: Result<tonic::Response<T>, Status>) -> Option<T> {
        match answer {
            Ok(answer) => {
                self.counts.changes.fetch_add(1, Ordering::Relaxed);
                Some(answer.into_inner())
            }
            Err(status) => {
                self.counts.uncertain.fetch_add(1, Ordering::Relaxed);
                if !matches!(status.code(), Code::NotFound | Code::Aborted | Code::FailedPrecondition) {
                    self.check_undecided(&status);
                }
                None
            }
        }
    }

    /// Checks that an undecided validation has one of the expected statuses.
    fn check_undecided(&self, status: &Status) {
        let is_honest = matches!(
            status.code(),
            Code::Unavailable
                | Code::DeadlineExceeded
                | Code::ResourceExhausted
                | Code::Cancelled
                | Code::Unknown
        );
        if !is_honest {
            let log = self.fleet.faults_in_logs();
            let told = format!("an outage was told as {}: {}; log: {log}", status.code(), status.message());
            self.counts.violations.lock().unwrap().push(told);
        }
    }
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PATIENCE);
    request
}
