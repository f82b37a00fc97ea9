//! Limits connections, streams and unread responses, in total and per client address. When a limit is
//! reached, the server closes connections of clients that hold many resources without using them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;

use super::state::{ConnectionState, StreamLimits};
use crate::domain::{BootClock, Moment, Stopwatch as _};
use crate::server::quota::Quota;
use crate::telemetry::ConnectionClosure;

/// Additional connections for administrators, so that other clients can't lock them out.
const RESERVED: usize = 64;
/// Minimum idle time after which a connection may be closed to make room for a new one.
const GIVES_WAY_AFTER: Duration = Duration::from_secs(1);
/// Maximum number of bytes of incomplete messages. Most messages arrive in one piece, and don't count.
const MAX_PARTIAL_BYTES: usize = 8 * 1024 * 1024;
/// Number of bytes of unread responses above which the server closes connections whose clients don't read.
const MAX_STALLED_BYTES: usize = 8 * 1024 * 1024;
/// Number of bytes of unread responses above which the server closes connections even if their clients read.
const MAX_UNREAD_BYTES: usize = 64 * 1024 * 1024;
/// Time without reading any part of a response after which a client counts as stalled.
const STALLED_AFTER: Duration = Duration::from_secs(1);
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

#[derive(Debug, Default)]
struct Connections {
    last: u64,
    reserved: usize,
    by_peer: HashMap<IpAddr, Peer>,
    /// Connections that count against `max`. Reserved ones and those that are being closed to make room
    /// don't.
    states: HashMap<u64, Arc<ConnectionState>>,
}

/// Resources that the clients of one address use.
#[derive(Clone, Debug, Default)]
struct Peer {
    connections: usize,
    streams: Arc<AtomicUsize>,
    partial: Arc<AtomicUsize>,
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
            Self::Idle => GIVES_WAY_AFTER,
            Self::Oldest => Duration::ZERO,
        }
    }
}

/// The kind of a client and its address, which is `None` for a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum Client {
    /// A client of a public listener.
    Anybody(Option<IpAddr>),
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
    pub(in crate::server) fn new(max: usize, max_per_peer: usize, max_streams: usize) -> Arc<Self> {
        Self::with(max, max_per_peer, max_streams, Policy::Idle)
    }

    /// Creates limits for short connections, which need no idle time. A new connection always finds room,
    /// because the oldest connection of the address with the most connections is closed. So an address with
    /// few connections keeps them.
    pub(in crate::server) fn for_probes(max: usize, max_per_peer: usize) -> Arc<Self> {
        Self::with(max, max_per_peer, max, Policy::Oldest)
    }

    fn with(max: usize, max_per_peer: usize, max_streams: usize, policy: Policy) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            max,
            max_per_peer,
            max_streams,
            policy,
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
        self.take_at(client, BootClock.moment())
    }

    fn take_at(self: &Arc<Self>, client: Client, now: Moment) -> Result<ConnectionPermit, LimitReached> {
        let (peer, is_administrator) = match client {
            Client::Anybody(peer) => (peer, false),
            Client::Administrator(peer) => (peer, true),
        };
        let peer = peer.map(network);
        let mut connections = self.lock();
        let of_peer = peer.and_then(|peer| connections.by_peer.get(&peer)).map_or(0, |peer| peer.connections);
        let is_peer_full = peer.is_some() && of_peer >= self.max_per_peer;
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
        let of_peer = peer.map(|peer| {
            let of_peer = connections.by_peer.entry(peer).or_default();
            of_peer.connections += 1;
            of_peer.clone()
        });
        connections.last += 1;
        connections.reserved += usize::from(is_reserved);
        let number = connections.last;
        let of_peer = of_peer.as_ref();
        let limits = StreamLimits {
            limiter: Weak::clone(&self.this),
            streams: if is_administrator {
                Quota::unlimited()
            } else {
                Quota::new(self.max_streams, &self.streams, of_peer.map(|peer| &peer.streams))
            },
            partial: if is_administrator {
                Quota::unlimited()
            } else {
                Quota::new(MAX_PARTIAL_BYTES, &self.partial, of_peer.map(|peer| &peer.partial))
            },
            counts_unread: !is_administrator,
        };
        let state = Arc::new(ConnectionState::new(peer, limits));
        if !is_reserved {
            connections.states.insert(number, Arc::clone(&state));
        }
        Ok(ConnectionPermit { limiter: Arc::clone(self), number, is_reserved, state })
    }

    /// Closes a connection of the address that holds the most streams without work for this server, to make
    /// room for a stream of `peer`. Returns false if `peer` itself holds the most, or if no address holds
    /// any. Also returns false if the last search was too recent.
    pub(super) fn close_holder(&self, peer: Option<IpAddr>) -> bool {
        self.may_search()
            && self.lock().close_largest(ConnectionClosure::HeldStreams, peer, ConnectionState::held_streams)
    }

    /// Counts `bytes` of a response. Above the limits, closes connections whose clients don't read, or read
    /// too little.
    pub(super) fn add_unread(&self, bytes: usize) {
        let all = self.unread.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if all > MAX_UNREAD_BYTES {
            self.close_unread(MAX_UNREAD_BYTES, None);
        }
        if all > MAX_STALLED_BYTES
            && let Ok(runtime) = Handle::try_current()
            && !self.is_sweeping.swap(true, Ordering::Relaxed)
        {
            runtime.spawn(Self::sweep(Weak::clone(&self.this)));
        }
    }

    /// Closes connections of stalled clients until the unread responses are within the limit.
    async fn sweep(limiter: Weak<Self>) {
        loop {
            tokio::time::sleep(STALLED_AFTER / 4).await;
            let Some(limiter) = limiter.upgrade() else { return };
            limiter.close_unread(MAX_STALLED_BYTES, Some(BootClock.moment()));
            if limiter.unread.load(Ordering::Relaxed) <= MAX_STALLED_BYTES {
                limiter.is_sweeping.store(false, Ordering::Relaxed);
                return;
            }
        }
    }

    pub(super) fn remove_unread(&self, bytes: usize) {
        self.unread.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Closes connections until the unread responses of the others have at most `max` bytes. If `now` is set,
    /// closes only connections of clients that have read nothing for a while.
    fn close_unread(&self, max: usize, now: Option<Moment>) {
        let mut connections = self.lock();
        let is_late =
            |state: &ConnectionState| now.is_none_or(|now| now.since(state.taken_at()) >= STALLED_AFTER);
        let unread = |state: &ConnectionState| if is_late(state) { state.unread_bytes() } else { 0 };
        while connections.states.values().map(|state| state.unread_bytes()).sum::<usize>() > max {
            if !connections.close_largest(ConnectionClosure::UnreadAnswers, None, unread) {
                return;
            }
        }
    }

    /// Returns whether the last search for a connection to close was long enough ago, and if so, begins a new
    /// interval.
    fn may_search(&self) -> bool {
        let now = BootClock.moment();
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

impl Connections {
    /// Closes a connection that was idle for `min_idle`, of the address `only` if that is set. The connection
    /// no longer counts. Returns false if no connection qualifies.
    fn make_room(&mut self, now: Moment, min_idle: Duration, only: Option<IpAddr>) -> bool {
        let of_peer = |peer: Option<IpAddr>| {
            peer.and_then(|peer| self.by_peer.get(&peer)).map_or(0, |peer| peer.connections)
        };
        let eligible = self.states.iter().filter(|(_, state)| only.is_none() || only == state.peer());
        let idle = eligible.filter_map(|(number, state)| {
            let since = state.idle_since().filter(|since| now.since(*since) >= min_idle)?;
            Some((*number, of_peer(state.peer()), since))
        });
        let longest = idle.max_by_key(|&(_, of_peer, since)| (of_peer, now.since(since)));
        longest.is_some_and(|(number, ..)| self.close(number, ConnectionClosure::Idle))
    }

    /// Closes the connection with the highest `usage` of the address with the highest total. Returns false if
    /// no connection has any, or if no address has more than `spared`, if that is set.
    fn close_largest(
        &mut self,
        closure: ConnectionClosure,
        spared: Option<IpAddr>,
        usage: impl Fn(&ConnectionState) -> usize,
    ) -> bool {
        let mut of_peers = HashMap::new();
        for state in self.states.values() {
            *of_peers.entry(state.peer()).or_insert(0) += usage(state);
        }
        let of_spared = spared.map_or(0, |_| of_peers.get(&spared).copied().unwrap_or(0));
        let largest = self
            .states
            .iter()
            .map(|(number, state)| (*number, of_peers.get(&state.peer()).copied().unwrap_or(0), usage(state)))
            .filter(|&(_, of_peer, of_connection)| of_peer > of_spared && of_connection > 0)
            .max_by_key(|&(_, of_peer, of_connection)| (of_peer, of_connection));
        largest.is_some_and(|(number, ..)| self.close(number, closure))
    }

    fn close(&mut self, number: u64, closure: ConnectionClosure) -> bool {
        let closed = self.states.remove(&number);
        if let Some(state) = &closed {
            state.close(closure);
        }
        closed.is_some()
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
        connections.states.remove(&self.number);
        connections.reserved -= usize::from(self.is_reserved);
        if let Some(peer) = self.state.peer()
            && let Some(of_peer) = connections.by_peer.get_mut(&peer)
        {
            of_peer.connections -= 1;
            if of_peer.connections == 0 {
                connections.by_peer.remove(&peer);
            }
        }
    }
}

/// Returns the address that connections are counted by. For IPv6 it is the /64 network, which sites are
/// assigned as a whole (RFC 6177).
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use hyper::body::Bytes;

    use super::*;
    use crate::grpc::methods::{Method, VALIDATE};
    use crate::server::connection::state::{OpenStream, REFLECTION_WEIGHT};

    fn anybody(text: &str) -> Client {
        Client::Anybody(Some(text.parse().unwrap()))
    }

    fn is_closed(permit: &ConnectionPermit) -> Option<ConnectionClosure> {
        permit.state.closed().now_or_never()
    }

    fn open(permit: &ConnectionPermit, count: usize) -> Vec<OpenStream> {
        (0..count).map_while(|_| permit.state.open_stream(Method::of(VALIDATE))).collect()
    }

    fn data(bytes: usize) -> Bytes {
        vec![0; bytes].into()
    }

    #[test]
    fn one_address_leaves_connections_for_others() {
        let limiter = ConnectionLimiter::new(3, 2, 10);
        let (a, b) = (anybody("192.0.2.1"), anybody("192.0.2.2"));
        let all = [limiter.take(a).unwrap(), limiter.take(a).unwrap()];
        assert_eq!(limiter.take(a).unwrap_err(), LimitReached::Peer);
        let third = limiter.take(b).unwrap();
        for permit in all.iter().chain([&third]) {
            permit.state.begin_work();
        }
        assert_eq!(limiter.take(Client::Anybody(None)).unwrap_err(), LimitReached::All);
        drop(all);
        let taken = [limiter.take(Client::Anybody(None)).unwrap(), limiter.take(a).unwrap()];
        drop((third, taken));
        assert_eq!(limiter.lock().by_peer.len(), 0, "nothing is kept of connections that ended");
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one_address() {
        let limiter = ConnectionLimiter::new(10, 2, 10);
        let _taken = ["2001:db8::1", "2001:db8::ffff:1"].map(|it| limiter.take(anybody(it)).unwrap());
        assert_eq!(limiter.take(anybody("2001:db8:0:0:1::")).unwrap_err(), LimitReached::Peer);
        let _other = limiter.take(anybody("2001:db8:0:1::1")).unwrap();
        let _mapped = ["::ffff:192.0.2.1", "192.0.2.1"].map(|it| limiter.take(anybody(it)).unwrap());
        assert_eq!(limiter.take(anybody("::ffff:192.0.2.1")).unwrap_err(), LimitReached::Peer);
    }

    #[test]
    fn administrators_have_connections_beyond_all_others() {
        let limiter = ConnectionLimiter::new(1, 100, 10);
        let first = limiter.take(anybody("192.0.2.1")).unwrap();
        first.state.begin_work();
        let administrators: Vec<_> =
            (0..RESERVED).map(|_| limiter.take(Client::Administrator(None)).unwrap()).collect();
        for permit in &administrators {
            permit.state.begin_work();
        }
        assert_eq!(limiter.take(Client::Administrator(None)).unwrap_err(), LimitReached::All);
        drop(administrators);
        assert_eq!(limiter.take(anybody("192.0.2.1")).unwrap_err(), LimitReached::All);
        assert_eq!(limiter.lock().reserved, 0);
    }

    #[test]
    fn a_reflection_stream_counts_as_several() {
        let limiter = ConnectionLimiter::new(10, 10, 4 * REFLECTION_WEIGHT);
        let client = limiter.take(anybody("192.0.2.1")).unwrap();
        let reflection = Method::of("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo");
        let open: Vec<_> = (0..2).filter_map(|_| client.state.open_stream(reflection)).collect();
        assert_eq!((open.len(), client.state.held_streams()), (2, 2 * REFLECTION_WEIGHT));
        assert!(client.state.open_stream(reflection).is_none());
        assert!(client.state.open_stream(Method::of("/grpc.health.v1.Health/Check")).is_some());
        drop(open);
        assert!(client.state.open_stream(reflection).is_some());
    }

    #[test]
    fn who_holds_streams_makes_room_for_others() {
        let limiter = ConnectionLimiter::new(10, 10, 8);
        let [small, large] = [(); 2].map(|()| limiter.take(anybody("192.0.2.1")).unwrap());
        let other = limiter.take(anybody("192.0.2.2")).unwrap();
        let (_small, _large) = (open(&small, 1), open(&large, 3));
        let of_other = open(&other, 2);
        let client = limiter.take(anybody("192.0.2.3")).unwrap();
        let of_client = open(&client, 2);
        assert_eq!(of_client.len(), 2, "within the limit");
        assert!(large.state.open_stream(None).is_none(), "the address itself holds most");
        limiter.last_search.store(0, Ordering::Relaxed);
        assert_eq!(open(&client, 1).len(), 1);
        assert_eq!(is_closed(&large), Some(ConnectionClosure::HeldStreams));
        assert_eq!((is_closed(&small), is_closed(&other)), (None, None));
        // Calls that wait for this server are not a reason to close a connection.
        for _ in &of_other {
            other.state.begin_work();
        }
        assert_eq!(other.state.held_streams(), 0);
    }

    #[test]
    fn a_probe_always_finds_room() {
        let limiter = ConnectionLimiter::for_probes(3, 2);
        let probe = limiter.take(anybody("192.0.2.1")).unwrap();
        let now = BootClock.moment();
        let slow = [(); 2].map(|()| limiter.take_at(anybody("192.0.2.2"), now).unwrap());
        let _third = limiter.take_at(anybody("192.0.2.2"), now).unwrap();
        let closed = slow.iter().filter(|permit| is_closed(permit).is_some()).count();
        assert_eq!(closed, 1, "an address over its limit makes room by its own");
        let _other = limiter.take_at(anybody("192.0.2.3"), now).unwrap();
        assert_eq!(is_closed(&probe), None, "the address with the most connections makes room");
    }

    #[test]
    fn the_longest_idle_connection_of_whoever_has_most_gives_way() {
        let limiter = ConnectionLimiter::new(3, 3, 10);
        let (many, few) = (anybody("192.0.2.1"), anybody("192.0.2.2"));
        let of_few = limiter.take(few).unwrap();
        let of_many = [limiter.take(many).unwrap(), limiter.take(many).unwrap()];
        let now = BootClock.moment();
        assert_eq!(limiter.take_at(few, now).unwrap_err(), LimitReached::All, "none is idle for long");
        of_many[0].state.begin_work();
        // A stream that does not wait for this server does not keep a connection busy.
        let _held = open(&of_many[1], 1);
        let later = now.after(GIVES_WAY_AFTER * 2);
        let _new = limiter.take_at(few, later).unwrap();
        assert_eq!(is_closed(&of_many[1]), Some(ConnectionClosure::Idle));
        assert_eq!((is_closed(&of_many[0]), is_closed(&of_few)), (None, None));
        let _newer = limiter.take_at(few, later).unwrap();
        assert_eq!(is_closed(&of_few), Some(ConnectionClosure::Idle));
    }

    #[test]
    fn of_clients_that_do_not_read_the_largest_is_closed() {
        let limiter = ConnectionLimiter::new(10, 10, 10);
        let [first, second] = [anybody("192.0.2.1"), anybody("192.0.2.2")];
        let [small, large] = [(); 2].map(|()| limiter.take(first).unwrap());
        let reads = limiter.take(second).unwrap();
        let _small = small.state.count_unread(data(MAX_STALLED_BYTES / 4));
        let _large = large.state.count_unread(data(MAX_STALLED_BYTES / 2));
        let _reads = reads.state.count_unread(data(MAX_STALLED_BYTES));
        let now = BootClock.moment();
        limiter.close_unread(MAX_STALLED_BYTES, Some(now));
        assert!([&small, &large, &reads].iter().all(|permit| is_closed(permit).is_none()), "all still read");
        let later = now.after(STALLED_AFTER);
        reads.state.note_taken();
        limiter.close_unread(MAX_STALLED_BYTES * 3 / 2, Some(later));
        assert_eq!(is_closed(&large), Some(ConnectionClosure::UnreadAnswers));
        assert_eq!((is_closed(&small), is_closed(&reads)), (None, None));
    }

    #[test]
    fn unread_answers_are_bounded_whatever_clients_read() {
        let limiter = ConnectionLimiter::new(10, 10, 10);
        let reads = limiter.take(anybody("192.0.2.1")).unwrap();
        let most = reads.state.count_unread(data(MAX_UNREAD_BYTES));
        assert_eq!(is_closed(&reads), None);
        drop(reads.state.count_unread(data(MAX_UNREAD_BYTES)));
        assert_eq!(is_closed(&reads), Some(ConnectionClosure::UnreadAnswers));
        let administrator = limiter.take(Client::Administrator(None)).unwrap();
        drop(administrator.state.count_unread(data(MAX_UNREAD_BYTES)));
        assert_eq!(is_closed(&administrator), None);
        drop(most);
        assert_eq!(limiter.unread.load(Ordering::Relaxed), 0);
    }
}
