//! The limits that all connections share: connections, streams, incomplete messages and unread responses, in
//! total and per client address. When a limit is reached, the server closes connections of clients that hold
//! many resources without using them.

mod open_connections;
#[cfg(test)]
mod tests;
mod unread_limit;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use self::open_connections::{Connections, PeerUsage, network};
use super::state::{ConnectionState, StreamLimits};
use crate::domain::{Moment, Stopwatch};
use crate::server::quota::Quota;
use crate::telemetry::ConnectionClosure;

/// Additional connections for administrators, so that other clients can't lock them out.
const RESERVED: usize = 64;
/// Minimum idle time after which a connection may be closed to make room for a new one.
const MIN_IDLE_TIME: Duration = Duration::from_secs(1);
/// Maximum number of bytes of incomplete messages. Most messages arrive in one piece, and don't count.
const MAX_PARTIAL_BYTES: usize = 8 * 1024 * 1024;
/// Minimum time between two searches for a connection to close. A search looks at all connections.
const SEARCH_INTERVAL: Duration = Duration::from_millis(5);

/// The limits, and the connections that count against them. Connections of administrators count only against
/// the number of connections.
#[derive(Debug)]
pub(in crate::server) struct ConnectionLimiter {
    this: Weak<Self>,
    max: usize,
    max_per_peer: usize,
    max_streams: usize,
    policy: Policy,
    stopwatch: Arc<dyn Stopwatch>,
    /// Number of open streams.
    streams: Arc<AtomicUsize>,
    /// Number of bytes of incomplete messages.
    partial: Arc<AtomicUsize>,
    /// Number of bytes of unread responses.
    unread: AtomicUsize,
    /// Whether a task that closes connections of stalled clients is running.
    is_sweeping: AtomicBool,
    /// Time of the last search for a connection to close, in nanoseconds.
    last_search: AtomicU64,
    connections: Mutex<Connections>,
}

/// The connections that may be closed to make room for new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    /// Only connections that were idle for a while, and only if the total limit is reached.
    Idle,
    /// Any connection, also if only the limit of its address is reached.
    Oldest,
}

impl Policy {
    /// Returns the minimum idle time of a connection that may be closed.
    fn min_idle(self) -> Duration {
        match self {
            Self::Idle => MIN_IDLE_TIME,
            Self::Oldest => Duration::ZERO,
        }
    }
}

/// The kind of a client and its address, which is `None` for a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum Client {
    /// A client of a public listener.
    Public(Option<IpAddr>),
    /// A client of a listener for administrators or of a Unix socket.
    Administrator(Option<IpAddr>),
}

/// The limit because of which a connection is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum LimitReached {
    /// The total limit, while no connection is idle.
    All,
    /// The limit per address.
    Peer,
}

/// A connection that counts against the limits. Dropping it frees its slot.
#[derive(Debug)]
pub(in crate::server) struct ConnectionPermit {
    limiter: Arc<ConnectionLimiter>,
    number: u64,
    is_reserved: bool,
    state: Arc<ConnectionState>,
}

impl ConnectionLimiter {
    /// Creates limits of `max` connections, `max_per_peer` connections per address, and `max_streams`
    /// streams.
    pub(in crate::server) fn new(
        max: usize,
        max_per_peer: usize,
        max_streams: usize,
        stopwatch: Arc<dyn Stopwatch>,
    ) -> Arc<Self> {
        Self::with(max, max_per_peer, max_streams, Policy::Idle, stopwatch)
    }

    /// Creates limits for short connections, which need no idle time. A new connection always finds room,
    /// because the oldest connection of the address with the most connections is closed. So an address with
    /// few connections keeps them.
    pub(in crate::server) fn for_probes(
        max: usize,
        max_per_peer: usize,
        stopwatch: Arc<dyn Stopwatch>,
    ) -> Arc<Self> {
        Self::with(max, max_per_peer, max, Policy::Oldest, stopwatch)
    }

    fn with(
        max: usize,
        max_per_peer: usize,
        max_streams: usize,
        policy: Policy,
        stopwatch: Arc<dyn Stopwatch>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            max,
            max_per_peer,
            max_streams,
            policy,
            stopwatch,
            streams: Arc::default(),
            partial: Arc::default(),
            unread: AtomicUsize::new(0),
            is_sweeping: AtomicBool::new(false),
            last_search: AtomicU64::new(0),
            connections: Mutex::default(),
        })
    }

    /// Counts a new connection. If the limit is reached, closes an idle connection to make room. It is the
    /// one that was idle for longest, of the address with the most connections.
    ///
    /// # Errors
    /// Returns the limit if it is reached and no connection can be closed.
    pub(in crate::server) fn take(
        self: &Arc<Self>,
        client: Client,
    ) -> Result<ConnectionPermit, LimitReached> {
        let now = self.stopwatch.moment();
        let (peer, is_administrator) = match client {
            Client::Public(peer) => (peer, false),
            Client::Administrator(peer) => (peer, true),
        };
        let peer = peer.map(network);
        let mut connections = self.lock();
        let is_peer_full = peer.is_some_and(|peer| connections.count_of(peer) >= self.max_per_peer);
        let min_idle = self.policy.min_idle();
        let makes_room = self.policy == Policy::Oldest;
        if is_peer_full && !(makes_room && connections.make_room(now, min_idle, peer)) {
            return Err(LimitReached::Peer);
        }
        let is_full = connections.states.len() >= self.max;
        let is_reserved = is_full && is_administrator && connections.reserved < RESERVED;
        if is_full && !is_reserved && !connections.make_room(now, min_idle, None) {
            return Err(LimitReached::All);
        }
        let usage = peer.map(|peer| connections.add(peer));
        connections.last += 1;
        connections.reserved += usize::from(is_reserved);
        let number = connections.last;
        let limits = self.stream_limits(is_administrator, usage.as_ref());
        let state = Arc::new(ConnectionState::new(peer, limits, Arc::clone(&self.stopwatch)));
        if !is_reserved {
            connections.states.insert(number, Arc::clone(&state));
        }
        Ok(ConnectionPermit { limiter: Arc::clone(self), number, is_reserved, state })
    }

    /// Returns the limits of a connection whose address has this `usage`.
    fn stream_limits(&self, is_administrator: bool, usage: Option<&PeerUsage>) -> StreamLimits {
        let quota = |max, of_all, of_peer| {
            if is_administrator { Quota::unlimited() } else { Quota::new(max, of_all, of_peer) }
        };
        StreamLimits {
            limiter: Weak::clone(&self.this),
            streams: quota(self.max_streams, &self.streams, usage.map(|usage| &usage.streams)),
            partial: quota(MAX_PARTIAL_BYTES, &self.partial, usage.map(|usage| &usage.partial)),
            counts_unread: !is_administrator,
        }
    }

    /// Closes a connection of the address that holds the most streams without work for this server, to make
    /// room for a stream of `peer`. Returns false if `peer` itself holds the most, or if no address holds
    /// any. Also returns false if the last search was too recent.
    pub(super) fn close_holder(&self, peer: Option<IpAddr>) -> bool {
        self.may_search()
            && self.lock().close_largest(ConnectionClosure::HeldStreams, peer, ConnectionState::held_streams)
    }

    /// Returns whether the last search for a connection to close was long enough ago, and if so, begins a new
    /// interval.
    fn may_search(&self) -> bool {
        let now = self.stopwatch.moment();
        let last = Moment::from_nanos(self.last_search.load(Ordering::Relaxed));
        let may = now.since(last) >= SEARCH_INTERVAL;
        if may {
            self.last_search.store(now.as_nanos(), Ordering::Relaxed);
        }
        may
    }

    // Each count is updated at once, so the counts are consistent even after a panic.
    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectionPermit {
    /// Returns the shared state of the connection.
    pub(in crate::server) fn state(&self) -> Arc<ConnectionState> {
        Arc::clone(&self.state)
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut connections = self.limiter.lock();
        connections.reserved -= usize::from(self.is_reserved);
        connections.remove(self.number, self.state.peer());
    }
}
