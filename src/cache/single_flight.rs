//! One load for all that wait for the same key.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tracing::Instrument as _;

use super::{Demand, Found, KeySource, Knowledge};
use crate::domain::{KeyHash, Moment};
use crate::repository::{ErrorKind, RepositoryError, Result, within};

/// Maximum number of calls that wait for the load of one key. Further calls are rejected.
const MAX_WAITERS: usize = 1_000;
/// How often a call that got what it may not serve any more asks anew.
const MAX_ATTEMPTS: usize = 16;

/// How much may be loaded.
#[derive(Clone, Copy, Debug)]
pub struct LoadLimits {
    /// Loads at one time; further ones are refused.
    pub max_loads: usize,
    /// How long one takes at most.
    pub deadline: Duration,
}

/// Joins the loads of `inner`. Each runs in a task of its own: who began it may go away, others wait for it.
#[derive(Debug)]
pub struct SingleFlight {
    inner: Arc<dyn KeySource>,
    knowledge: Arc<Knowledge>,
    flights: Arc<Flights>,
    free: Arc<Semaphore>,
    deadline: Duration,
    handle: Handle,
}

type Outcome = Option<Result<Found>>;

#[derive(Debug, Default)]
struct Flights {
    by_hash: Mutex<HashMap<KeyHash, Flight>>,
    last: AtomicU64,
}

#[derive(Clone, Debug)]
struct Flight {
    number: u64,
    began: Moment,
    max_staleness: Duration,
    landed: watch::Receiver<Outcome>,
    /// Counted by its references: one per waiting call, and one in the map of flights.
    waiters: Arc<()>,
}

impl SingleFlight {
    /// Loads from `inner` on the runtime of `handle`.
    pub fn new(
        inner: Arc<dyn KeySource>,
        knowledge: Arc<Knowledge>,
        limits: LoadLimits,
        handle: Handle,
    ) -> Self {
        Self {
            inner,
            knowledge,
            flights: Arc::default(),
            free: Arc::new(Semaphore::new(limits.max_loads.min(Semaphore::MAX_PERMITS))),
            deadline: limits.deadline,
            handle,
        }
    }

    /// A load that began late enough for `demand`: one that runs already, or a new one.
    fn flight(&self, hash: &KeyHash, demand: &Demand) -> Result<Flight> {
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get(hash)
            && flight.began >= demand.oldest()
            && flight.max_staleness <= demand.max_staleness
        {
            if Arc::strong_count(&flight.waiters) > MAX_WAITERS {
                return Err(RepositoryError::new(
                    ErrorKind::Overloaded,
                    "too many concurrent calls for one key",
                ));
            }
            return Ok(flight.clone());
        }
        let Ok(place) = Arc::clone(&self.free).try_acquire_owned() else {
            return Err(RepositoryError::new(ErrorKind::Overloaded, "too many keys are being loaded"));
        };
        let number = self.flights.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (land, landed) = watch::channel(None);
        let began = self.knowledge.moment();
        let max_staleness = demand.max_staleness;
        let flight = Flight { number, began, max_staleness, landed, waiters: Arc::default() };
        flights.insert(*hash, flight.clone());
        drop(flights);

        let (inner, hash) = (Arc::clone(&self.inner), *hash);
        let demand = Demand { asked_at: began, ..*demand };
        let (deadline, landing) =
            (self.deadline, Landing { flights: Arc::clone(&self.flights), hash, number });
        let load = async move {
            let found = within(deadline, inner.find(&hash, &demand)).await;
            // From here on nobody joins it, so whoever did is told.
            drop(landing);
            land.send_replace(Some(found));
            drop(place);
        };
        // It belongs to the call that began it.
        self.handle.spawn(load.in_current_span());
        Ok(flight)
    }
}

/// Takes a flight off the list when it ends, also by a panic.
struct Landing {
    flights: Arc<Flights>,
    hash: KeyHash,
    number: u64,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut flights = self.flights.lock();
        if flights.get(&self.hash).is_some_and(|flight| flight.number == self.number) {
            flights.remove(&self.hash);
        }
    }
}

impl Flights {
    // A poisoned lock is taken over: no change of the map can panic half-way.
    fn lock(&self) -> MutexGuard<'_, HashMap<KeyHash, Flight>> {
        self.by_hash.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    async fn land(mut self) -> Result<Found> {
        let landed = self.landed.wait_for(Option::is_some).await;
        let outcome = landed.ok().and_then(|landed| landed.clone());
        // The panic itself is in the log.
        let lost = || Err(RepositoryError::new(ErrorKind::Internal, "the load did not come to its end"));
        outcome.unwrap_or_else(lost)
    }
}

impl fmt::Display for SingleFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl KeySource for SingleFlight {
    fn peek(&self, hash: &KeyHash, demand: &Demand) -> Option<Found> {
        self.inner.peek(hash, demand)
    }

    async fn find(&self, hash: &KeyHash, demand: &Demand) -> Result<Found> {
        if let Some(found) = self.peek(hash, demand) {
            return Ok(found);
        }
        for _ in 0..MAX_ATTEMPTS {
            let found = self.flight(hash, demand)?.land().await?;
            // A change that was answered while this call waited is not undone by a load from before it.
            if self.knowledge.fits(hash, &found.entry) && found.as_of >= demand.oldest() {
                return Ok(found);
            }
        }
        Err(RepositoryError::new(ErrorKind::Unavailable, "the key changes faster than it can be read"))
    }
}
