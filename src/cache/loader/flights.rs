//! Loads in progress, and the calls that wait for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, watch};
use tracing::Span;

use crate::cache::{Demand, Found};
use crate::domain::KeyHash;
use crate::repository::{ErrorKind, RepositoryError, Result};

/// Maximum number of calls that wait for the load of one key. Further calls are rejected.
const MAX_WAITERS: usize = 1_000;

/// The flights of all keys. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Flights(Arc<Mutex<InProgress>>);

#[derive(Debug, Default)]
pub(super) struct InProgress {
    by_hash: HashMap<KeyHash, Flight>,
    last: u64,
}

/// A load that callers wait for.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    number: u64,
    demand: Demand,
    outcome: watch::Receiver<Option<Result<Found>>>,
    /// Counted by its references: one per waiting call, one in the map and one in the load.
    waiters: Arc<()>,
}

/// The load of a flight. When it is dropped, it lands with its outcome, or with an error if it has none.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) hash: KeyHash,
    /// The demand of the call that began the flight, with the moment at which the flight began.
    pub(super) demand: Demand,
    number: u64,
    landing: watch::Sender<Option<Result<Found>>>,
    /// The outcome of a load that has not landed yet.
    outcome: Option<Result<Found>>,
    waiters: Arc<()>,
    /// The span of the call that began the flight.
    pub(super) span: Span,
    flights: Flights,
    _permit: OwnedSemaphorePermit,
}

impl Flights {
    // A poisoned lock is usable, because changes of the map can't panic halfway.
    pub(super) fn lock(&self) -> MutexGuard<'_, InProgress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InProgress {
    /// Returns the flight of `hash` if it meets `demand`. `None` if a new flight is needed.
    ///
    /// # Errors
    /// [`ErrorKind::Overloaded`] if too many calls wait for it.
    pub(super) fn join(&self, hash: &KeyHash, demand: &Demand) -> Result<Option<Flight>> {
        let flight = self.by_hash.get(hash).filter(|flight| {
            flight.demand.asked_at >= demand.oldest() && flight.demand.max_staleness <= demand.max_staleness
        });
        if flight.is_some_and(|flight| Arc::strong_count(&flight.waiters) > MAX_WAITERS + 1) {
            return Err(RepositoryError::new(ErrorKind::Overloaded, "too many concurrent calls for one key"));
        }
        Ok(flight.cloned())
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_hash.len()
    }

    fn is_listed(&self, load: &Load) -> bool {
        self.by_hash.get(&load.hash).is_some_and(|flight| flight.number == load.number)
    }

    /// Begins a flight that later calls can join.
    pub(super) fn begin(
        &mut self,
        hash: KeyHash,
        demand: Demand,
        permit: OwnedSemaphorePermit,
        flights: &Flights,
    ) -> (Flight, Load) {
        self.last += 1;
        let (number, (landing, outcome)) = (self.last, watch::channel(None));
        let waiters = Arc::default();
        let flight = Flight { number, demand, outcome, waiters: Arc::clone(&waiters) };
        self.by_hash.insert(hash, flight.clone());
        let load = Load {
            hash,
            demand,
            number,
            landing,
            outcome: None,
            waiters,
            span: Span::current(),
            flights: flights.clone(),
            _permit: permit,
        };
        (flight, load)
    }
}

impl Flight {
    /// Waits for the outcome.
    pub(super) async fn landed(mut self) -> Result<Found> {
        let outcome = self.outcome.wait_for(Option::is_some).await;
        let outcome = outcome.ok().and_then(|outcome| outcome.clone());
        outcome.unwrap_or_else(|| Err(lost()))
    }
}

impl Load {
    /// Returns whether no call waits for the outcome any more. If so, no call can join any more.
    pub(super) fn is_abandoned(&self) -> bool {
        let mut in_progress = self.flights.lock();
        let is_listed = in_progress.is_listed(self);
        let is_abandoned = Arc::strong_count(&self.waiters) == 1 + usize::from(is_listed);
        if is_abandoned && is_listed {
            in_progress.by_hash.remove(&self.hash);
        }
        is_abandoned
    }

    /// Sets the outcome, with which the load lands when it is dropped.
    pub(super) fn complete(&mut self, outcome: Result<Found>) {
        self.outcome = Some(outcome);
    }

    fn land(&self, outcome: Result<Found>) {
        // Once it is removed, no call can join. Each call that has joined gets the outcome.
        let mut in_progress = self.flights.lock();
        if in_progress.is_listed(self) {
            in_progress.by_hash.remove(&self.hash);
        }
        drop(in_progress);
        self.landing.send_replace(Some(outcome));
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Without an outcome, the task panicked, which is logged, or its runtime shut down.
        let outcome = self.outcome.take().unwrap_or_else(|| Err(lost()));
        self.land(outcome);
    }
}

fn lost() -> RepositoryError {
    RepositoryError::new(ErrorKind::Internal, "the load did not complete")
}
