//! A worker: one thread with a single-threaded runtime that serves the connections handed to it.

use std::io;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::connection::{Accepted, ConnectionDriver, ConnectionPermit, WorkerSlot};
use super::lifecycle::{Phase, WorkerLifecycle, reaches};
use super::routes::Role;

/// Fraction by which the maximum age of a connection varies in both directions.
const JITTER: f64 = 0.1;

/// A connection and the role of its listener.
type HandedOver = (Role, Accepted, WorkerSlot);

/// Hands connections to a worker.
#[derive(Clone, Debug)]
pub(super) struct WorkerHandle {
    connections: mpsc::UnboundedSender<HandedOver>,
    load: Gauge,
}

impl WorkerHandle {
    /// Returns the number of connections of the worker.
    pub(super) fn connections(&self) -> i64 {
        self.load.get()
    }

    /// Hands the worker a connection. If the worker is draining, the connection is closed instead.
    pub(super) fn hand_over(&self, role: Role, accepted: Accepted, permit: ConnectionPermit) {
        let slot = WorkerSlot::take(&self.load, permit);
        // The queue needs no limit of its own, because every element holds one of the server's permits.
        let _ = self.connections.send((role, accepted, slot));
    }
}

/// A running worker.
#[derive(Debug)]
pub(super) struct Worker {
    handle: WorkerHandle,
}

impl Worker {
    /// Starts a worker. Its thread ends when the connections are cut, or when the server drains and the last
    /// connection has ended. `load` has the number of its connections.
    pub(super) fn start(
        drivers: Vec<(Role, ConnectionDriver)>,
        load: Gauge,
        lifecycle: WorkerLifecycle,
    ) -> io::Result<Self> {
        let (connections, handed_over) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name(format!("worker-{}", lifecycle.number)).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(drivers, handed_over, &lifecycle) => {}
                    () = reaches(&lifecycle.phase, Phase::Cut) => {}
                }
            });
            // Connections are tasks of the runtime, and are dropped with it.
            drop(runtime);
            drop(lifecycle);
        })?;
        Ok(Self { handle: WorkerHandle { connections, load } })
    }

    pub(super) fn handle(&self) -> WorkerHandle {
        self.handle.clone()
    }
}

/// Serves the connections that are handed over until the server drains, and then until the last connection
/// has ended.
async fn serve(
    drivers: Vec<(Role, ConnectionDriver)>,
    mut handed_over: mpsc::UnboundedReceiver<HandedOver>,
    lifecycle: &WorkerLifecycle,
) {
    let mut connections = JoinSet::new();
    let mut drains = std::pin::pin!(reaches(&lifecycle.phase, Phase::Drain));
    let mut number = lifecycle.number;
    loop {
        tokio::select! {
            () = &mut drains => break,
            Some((role, accepted, slot)) = handed_over.recv() => {
                let Some((_, driver)) = drivers.iter().find(|(of, _)| *of == role) else { continue };
                number += 1;
                connections.spawn(driver.clone().run((accepted, slot), jitter(number)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
    drop(handed_over);
    while connections.join_next().await.is_some() {}
}

/// Returns a factor between 0.9 and 1.1 that differs clearly from those of neighbouring numbers, so that
/// connections which began together don't end together.
fn jitter(number: usize) -> f64 {
    // The golden ratio spreads its multiples evenly (Knuth, The Art of Computer Programming, section 6.4).
    let spread = (f64::from(u32::try_from(number % 1_000_000).unwrap_or(0)) * 0.618_033_988_749_895).fract();
    1.0 - JITTER + 2.0 * JITTER * spread
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maximum_ages_are_spread_around_the_configured_age() {
        let all: Vec<_> = (0..1_000).map(jitter).collect();
        assert!(all.iter().all(|jitter| (0.9..1.1).contains(jitter)));
        let below = all.iter().filter(|jitter| **jitter < 1.0).count();
        assert!((450..550).contains(&below), "{below}");
    }
}
