//! Loads keys that are not in the cache of this process.
//!
//! ```text
//! find ─→ peek ─→ join or begin the flight of the key ─→ batch ─→ one task: caches, then the backend ─→ all waiting calls
//! ```
//!
//! All calls that wait for one key share one *flight*. Flights that begin in the same turn of a thread's
//! runtime share one task and, if the backend [supports batching](KeyRepository::supports_batching), one
//! lookup. The task runs on the runtime of the backend's connections, and completes even if all callers go
//! away.

mod flights;
mod queue;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tracing::Instrument as _;

use self::flights::{Flight, Flights, Load};
use self::queue::LoadQueue;
use super::{Breaker, Demand, Entry, Found, KeyCache, KeySource, Knowledge, LoadStart, Tier};
use crate::domain::{ApiKey, KeyHash, Moment};
use crate::repository::{ErrorKind, KeyRepository, RepositoryError, Result, within};

/// Maximum number of flights that a call waits for. A further flight is needed if a change made the result of
/// the previous one unusable.
const MAX_ATTEMPTS: usize = 16;

/// Limits of loads.
#[derive(Clone, Copy, Debug)]
pub struct LoadLimits {
    /// Maximum number of concurrent loads. Further loads are rejected.
    pub max_loads: usize,
    /// Maximum time of a load, from the beginning of its batch.
    pub deadline: Duration,
}

/// Looks up keys in caches and in a repository behind them. Clones share flights.
#[derive(Clone, Debug)]
pub(super) struct Loader {
    tiers: Arc<Tiers>,
    flights: Flights,
    queue: Option<Arc<LoadQueue>>,
    free: Arc<Semaphore>,
    handle: Handle,
}

/// Caches and the backend, in the order of lookups.
#[derive(Debug)]
struct Tiers {
    /// The caches, the outermost first.
    caches: Vec<Arc<dyn KeyCache>>,
    repository: Arc<dyn KeyRepository>,
    knowledge: Arc<Knowledge>,
    breaker: Arc<Breaker>,
    deadline: Duration,
}

impl Loader {
    /// Creates a loader that looks up keys in `caches`, the outermost first, and then in `repository` while
    /// `breaker` is closed. Loads run on the runtime of `handle`.
    pub(super) fn new(
        caches: Vec<Arc<dyn KeyCache>>,
        repository: Arc<dyn KeyRepository>,
        knowledge: Arc<Knowledge>,
        breaker: Arc<Breaker>,
        limits: LoadLimits,
        handle: Handle,
    ) -> Self {
        let supports_batching = repository.supports_batching();
        let tiers = Arc::new(Tiers { caches, repository, knowledge, breaker, deadline: limits.deadline });
        Self {
            queue: supports_batching.then(|| LoadQueue::new(Arc::clone(&tiers), handle.clone())),
            tiers,
            flights: Flights::default(),
            free: Arc::new(Semaphore::new(limits.max_loads.min(Semaphore::MAX_PERMITS))),
            handle,
        }
    }

    /// Returns a flight that began late enough for `demand`, either one in progress or a new one.
    ///
    /// # Errors
    /// [`ErrorKind::Overloaded`] if too many calls wait for the key, or too many loads are in flight.
    fn flight(&self, hash: &KeyHash, demand: &Demand) -> Result<Flight> {
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.join(hash, demand)? {
            return Ok(flight);
        }
        let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() else {
            return Err(RepositoryError::new(ErrorKind::Overloaded, "too many concurrent loads"));
        };
        let began = self.tiers.knowledge.moment();
        let (flight, load) =
            flights.begin(*hash, Demand { asked_at: began, ..*demand }, permit, &self.flights);
        drop(flights);
        if let Some(queue) = &self.queue {
            queue.push(load);
        } else {
            let tiers = Arc::clone(&self.tiers);
            let run = async move { drop(tiers.run(vec![load]).await) };
            self.handle.spawn(run.in_current_span());
        }
        Ok(flight)
    }

    /// Returns the demand that applies. Without a cache, each call reads the backend itself.
    fn demand(&self, demand: &Demand) -> Demand {
        if self.tiers.caches.is_empty() {
            Demand { max_staleness: Duration::ZERO, ..*demand }
        } else {
            *demand
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl KeySource for Loader {
    fn peek(&self, hash: &KeyHash, demand: &Demand) -> Option<Found> {
        self.tiers.caches.iter().find_map(|cache| self.tiers.peek(cache.as_ref(), hash, demand))
    }

    async fn find(&self, hash: &KeyHash, demand: &Demand) -> Result<Found> {
        if let Some(found) = self.peek(hash, demand) {
            return Ok(found);
        }
        let demand = self.demand(demand);
        for _ in 0..MAX_ATTEMPTS {
            let flight = self.flight(hash, &demand)?;
            let found = within(self.tiers.deadline, flight.landed()).await?;
            // A load from before an acknowledged change must not be served, even to a call that began before
            // the change.
            if self.tiers.knowledge.fits(hash, &found.entry) && found.as_of >= demand.oldest() {
                return Ok(found);
            }
        }
        Err(RepositoryError::new(ErrorKind::Unavailable, "the key changes faster than it can be read"))
    }
}

impl fmt::Display for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for cache in &self.tiers.caches {
            write!(f, "{cache} → ")?;
        }
        self.tiers.repository.fmt(f)
    }
}

impl Tiers {
    /// Runs loads, and returns those that required the backend, with their outcomes. They land when they are
    /// dropped. The others have landed.
    async fn run(&self, mut loads: Vec<Load>) -> Vec<Load> {
        let mut completed = Vec::with_capacity(loads.len());
        if tokio::time::timeout(self.deadline, self.find_all(&mut loads, &mut completed)).await.is_err() {
            for mut load in loads {
                let timeout = RepositoryError::new(ErrorKind::Timeout, "the load did not complete in time");
                load.complete(Err(timeout));
                completed.push(load);
            }
        }
        completed
    }

    /// Moves each of `loads` to `completed` once its outcome is known, or lands it.
    async fn find_all(&self, loads: &mut Vec<Load>, completed: &mut Vec<Load>) {
        if !self.caches.is_empty() {
            let found = join_all(loads.iter().map(|load| self.find_in_caches(load))).await;
            let mut found = found.into_iter();
            loads.retain_mut(|load| match found.next().flatten() {
                Some(found) => {
                    // Drop it, and thus land it, now, so that the backend, which the rest of the batch waits
                    // for, does not delay it.
                    load.complete(Ok(found));
                    false
                }
                None => true,
            });
        }
        self.find_in_repository(loads, completed).await;
    }

    async fn find_in_caches(&self, load: &Load) -> Option<Found> {
        let (hash, demand) = (&load.hash, &load.demand);
        for (number, cache) in self.caches.iter().enumerate() {
            // Read before the entry: see `Knowledge::confirmed`.
            let confirmed = self.knowledge.confirmed(hash);
            if let Some(entry) = cache.get(hash).await
                && self.knowledge.fits(hash, &entry)
                && let Some(found) = self.fresh(cache.as_ref(), hash, entry, confirmed, demand)
            {
                self.put(&self.caches[..number], hash, &found.entry).await;
                return Some(found);
            }
        }
        None
    }

    async fn find_in_repository(&self, loads: &mut Vec<Load>, completed: &mut Vec<Load>) {
        let mut attempt = self.breaker.attempt();
        let mut starts = Vec::with_capacity(loads.len());
        for mut load in std::mem::take(loads) {
            // Note the cursor before anything is read, so that the result reflects everything up to it.
            let start = self.knowledge.begin_load(&load.hash).ok_or_else(|| {
                RepositoryError::new(ErrorKind::Unavailable, "the backend's change feed was not read yet")
            });
            match start.and_then(|start| attempt.admit(&load.hash).map(|()| start)) {
                Ok(start) => {
                    loads.push(load);
                    starts.push(start);
                }
                Err(error) => {
                    load.complete(Err(error));
                    completed.push(load);
                }
            }
        }
        let hashes: Vec<_> = loads.iter().map(|load| load.hash).collect();
        let records = self.read(&hashes).instrument(tracing::debug_span!("store")).await;
        for (hash, record) in hashes.iter().zip(&records) {
            attempt.ended(hash, record);
        }
        drop(attempt);
        let mut entries = Vec::with_capacity(hashes.len());
        for (((load, record), start), hash) in loads.iter_mut().zip(records).zip(starts).zip(hashes) {
            let outcome = self.outcome(&hash, &start, record);
            entries.extend(outcome.as_ref().ok().map(|found| (hash, found.entry.clone())));
            load.complete(outcome);
        }
        // From here on, the loads keep their outcomes, even if a cache takes longer than the deadline.
        completed.append(loads);
        // Caches reject entries that don't meet the fences. Each call checks its entry for itself.
        join_all(entries.iter().map(|(hash, entry)| self.put(&self.caches, hash, entry))).await;
    }

    /// Returns the outcome of a load that began at `start` and read `record`.
    fn outcome(&self, hash: &KeyHash, start: &LoadStart, record: Result<Option<ApiKey>>) -> Result<Found> {
        match record? {
            // The response to another lookup must never decide about a key.
            Some(record) if record.hash != *hash => {
                Err(RepositoryError::new(ErrorKind::Corrupt, "the record of another key"))
            }
            record => {
                let entry = self.knowledge.loaded(hash, start, record);
                Ok(Found { entry, tier: Tier::Backend, as_of: start.began })
            }
        }
    }

    /// Returns the repository's outcome for each of `hashes`.
    async fn read(&self, hashes: &[KeyHash]) -> Vec<Result<Option<ApiKey>>> {
        match hashes {
            [] => Vec::new(),
            [hash] => vec![self.repository.get_by_hash(hash).await],
            hashes => self
                .repository
                .get_many_by_hash(hashes)
                .await
                .unwrap_or_else(|error| hashes.iter().map(|_| Err(error.clone())).collect()),
        }
    }

    /// Puts `entry` into `caches`, the innermost first.
    async fn put(&self, caches: &[Arc<dyn KeyCache>], hash: &KeyHash, entry: &Entry) {
        for cache in caches.iter().rev() {
            cache.put(hash, entry).await;
        }
    }

    fn peek(&self, cache: &dyn KeyCache, hash: &KeyHash, demand: &Demand) -> Option<Found> {
        let confirmed = self.knowledge.confirmed(hash);
        let entry = cache.peek(hash)?;
        let may_serve = self.knowledge.is_of_this_epoch(&entry) && entry.kept_until > demand.asked_at;
        may_serve.then(|| self.fresh(cache, hash, entry, confirmed, demand))?
    }

    /// Returns `entry` of `cache` if its staleness meets `demand`. `confirmed` was read before the entry.
    fn fresh(
        &self,
        cache: &dyn KeyCache,
        hash: &KeyHash,
        entry: Entry,
        confirmed: Option<Moment>,
        demand: &Demand,
    ) -> Option<Found> {
        let as_of =
            self.knowledge.as_of(hash, &entry, confirmed).filter(|as_of| *as_of >= demand.oldest())?;
        Some(Found { entry, tier: cache.tier(), as_of })
    }
}
