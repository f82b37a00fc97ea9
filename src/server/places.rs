//! Limits the number of connections and streams, in total and per client address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::quota::{Quota, Taken};
use super::unread::{Unread, UnreadAnswers};
use crate::domain::{BootClock, Moment, Stopwatch as _};

/// Additional connections for administrators, so that other clients can't lock them out.
const RESERVED: usize = 64;
/// Minimum idle time after which a connection may be closed to make room for a new one.
const GIVES_WAY_AFTER: Duration = Duration::from_secs(1);
/// Maximum number of bytes of incomplete messages. Most messages arrive at once, and don't count.
const MAX_PARTIAL_BYTES: usize = 8 * 1024 * 1024;
/// Number of streams that a stream of reflection counts as: it can hold 64 KiB of requests that the server has not read.
const REFLECTION_WEIGHT: usize = 16;

/// The limits, and the connections that count against them.
#[derive(Debug)]
pub(super) struct Places {
    max: usize,
    max_per_peer: usize,
    max_streams: usize,
    gives_way_after: Duration,
    /// Whether an address at its limit makes room by one of its own connections.
    peers_make_room: bool,
    /// Number of open streams, without those of administrators.
    streams: Arc<AtomicUsize>,
    /// Bytes of incomplete messages, without those of administrators.
    partial: Arc<AtomicUsize>,
    unread: Arc<UnreadAnswers>,
    connections: Mutex<Connections>,
}

#[derive(Debug, Default)]
struct Connections {
    last: u64,
    reserved: usize,
    by_peer: HashMap<IpAddr, Peer>,
    /// Connections that count against `max`: without reserved ones, and without those that are being closed to make room.
    seats: HashMap<u64, (Option<IpAddr>, Seat)>,
}

/// Use of the limits by the clients of one address.
#[derive(Clone, Debug, Default)]
struct Peer {
    connections: usize,
    streams: Arc<AtomicUsize>,
    partial: Arc<AtomicUsize>,
}

/// The kind of client that connects, and its address; Unix sockets have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guest {
    /// A client of a public listener.
    Anybody(Option<IpAddr>),
    /// A client of a listener for administrators or of a Unix socket.
    Administrator(Option<IpAddr>),
}

/// The limit that rejects a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// The total limit; no connection is idle.
    All,
    /// The limit of the address.
    Peer,
}

/// A connection that counts until this is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    places: Arc<Places>,
    number: u64,
    peer: Option<IpAddr>,
    is_reserved: bool,
    seat: Seat,
}

/// Shared state of a connection and the limits.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    /// Start of the idle period in nanoseconds, or [`BUSY`].
    idle_since: Arc<AtomicU64>,
    gives_way: Arc<Notify>,
    /// Open streams. Those of administrators are only limited per connection.
    streams: Quota,
    /// Bytes of incomplete messages.
    partial: Quota,
    /// `None` for administrators.
    unread: Option<Arc<Unread>>,
}

const BUSY: u64 = u64::MAX;

/// The kind of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamKind {
    /// Counts as [`REFLECTION_WEIGHT`] streams.
    Reflection,
    Other,
}

impl Seat {
    /// Creates the state of a connection that is idle from now on.
    fn new(streams: Quota, partial: Quota, unread: Option<Arc<Unread>>) -> Self {
        let now = BootClock.moment().as_nanos();
        Self {
            idle_since: Arc::new(AtomicU64::new(now)),
            gives_way: Arc::default(),
            streams,
            partial,
            unread,
        }
    }

    /// Counts a new stream of the connection. Returns `None` if a limit rejects it.
    pub(super) fn open_stream(&self, kind: StreamKind) -> Option<Taken> {
        self.streams.take(match kind {
            StreamKind::Reflection => REFLECTION_WEIGHT,
            StreamKind::Other => 1,
        })
    }

    /// Returns the quota for bytes of incomplete messages.
    pub(super) fn partial(&self) -> Quota {
        self.partial.clone()
    }

    /// Sets whether calls are in flight on the connection.
    pub(super) fn set_busy(&self, is_busy: bool) {
        let since = if is_busy { BUSY } else { BootClock.moment().as_nanos() };
        self.idle_since.store(since, Ordering::Relaxed);
    }

    /// Completes when the connection has to be closed to make room.
    pub(super) async fn gives_way(&self) {
        self.gives_way.notified().await;
    }

    /// Returns the unread answers of the connection; `None` for administrators.
    pub(super) fn unread(&self) -> Option<&Arc<Unread>> {
        self.unread.as_ref()
    }

    /// Completes when the connection has to be closed at once, because its client reads too little.
    pub(super) async fn is_closed(&self) {
        match &self.unread {
            Some(unread) => unread.is_closed().await,
            None => std::future::pending().await,
        }
    }

    fn idle_since(&self) -> Option<Moment> {
        let since = self.idle_since.load(Ordering::Relaxed);
        (since != BUSY).then(|| Moment::from_nanos(since))
    }
}

impl Places {
    /// Creates limits of `max` connections, `max_per_peer` connections per address, and `max_streams` streams. Streams of
    /// administrators don't count.
    pub(super) fn new(max: usize, max_per_peer: usize, max_streams: usize) -> Arc<Self> {
        Arc::new(Self::with(max, max_per_peer, max_streams))
    }

    /// Creates limits for connections that are never idle for a purpose: a new connection always finds room, at the expense of
    /// the oldest connection of the address with the most. So an address with few connections keeps them.
    pub(super) fn for_probes(max: usize, max_per_peer: usize) -> Arc<Self> {
        let limits = Self::with(max, max_per_peer, max);
        Arc::new(Self { gives_way_after: Duration::ZERO, peers_make_room: true, ..limits })
    }

    fn with(max: usize, max_per_peer: usize, max_streams: usize) -> Self {
        Self {
            max,
            max_per_peer,
            max_streams,
            gives_way_after: GIVES_WAY_AFTER,
            peers_make_room: false,
            streams: Arc::default(),
            partial: Arc::default(),
            unread: Arc::default(),
            connections: Mutex::default(),
        }
    }

    /// Counts a new connection. If the limit is reached, closes an idle connection to make room: of the address with the most
    /// connections the one that was idle for longest.
    pub(super) fn take(self: &Arc<Self>, guest: Guest) -> Result<Permit, Full> {
        self.take_at(guest, BootClock.moment())
    }

    fn take_at(self: &Arc<Self>, guest: Guest, now: Moment) -> Result<Permit, Full> {
        let (peer, is_administrator) = match guest {
            Guest::Anybody(peer) => (peer, false),
            Guest::Administrator(peer) => (peer, true),
        };
        let peer = peer.map(network);
        let mut connections = self.lock();
        let of_peer = peer.and_then(|peer| connections.by_peer.get(&peer)).map_or(0, |peer| peer.connections);
        let is_peer_full = peer.is_some() && of_peer >= self.max_per_peer;
        if is_peer_full && !(self.peers_make_room && connections.make_room(now, self.gives_way_after, peer)) {
            return Err(Full::Peer);
        }
        let is_full = connections.seats.len() >= self.max;
        let is_reserved = is_full && is_administrator && connections.reserved < RESERVED;
        if is_full && !is_reserved && !connections.make_room(now, self.gives_way_after, None) {
            return Err(Full::All);
        }
        let of_peer = peer.map(|peer| {
            let of_peer = connections.by_peer.entry(peer).or_default();
            of_peer.connections += 1;
            of_peer.clone()
        });
        connections.last += 1;
        connections.reserved += usize::from(is_reserved);
        let number = connections.last;
        let seat = if is_administrator {
            Seat::new(Quota::unlimited(), Quota::unlimited(), None)
        } else {
            let of_peer = of_peer.as_ref();
            Seat::new(
                Quota::new(self.max_streams, &self.streams, of_peer.map(|peer| &peer.streams)),
                Quota::new(MAX_PARTIAL_BYTES, &self.partial, of_peer.map(|peer| &peer.partial)),
                Some(self.unread.connect(number, peer)),
            )
        };
        if !is_reserved {
            connections.seats.insert(number, (peer, seat.clone()));
        }
        Ok(Permit { places: Arc::clone(self), number, peer, is_reserved, seat })
    }

    // Counts are whole whatever panicked.
    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connections {
    /// Closes a connection that was idle for `minimum`, of `only` this address if given. It no longer counts. Returns false if no
    /// connection qualifies.
    fn make_room(&mut self, now: Moment, minimum: Duration, only: Option<IpAddr>) -> bool {
        let of_peer = |peer: &Option<IpAddr>| {
            peer.and_then(|peer| self.by_peer.get(&peer)).map_or(0, |peer| peer.connections)
        };
        let eligible = self.seats.iter().filter(|(_, (peer, _))| only.is_none() || only == *peer);
        let idle = eligible.filter_map(|(number, (peer, seat))| {
            let since = seat.idle_since().filter(|since| now.since(*since) >= minimum)?;
            Some((*number, of_peer(peer), since))
        });
        let longest = idle.max_by_key(|&(_, of_peer, since)| (of_peer, now.since(since)));
        let Some((_, seat)) = longest.and_then(|(number, ..)| self.seats.remove(&number)) else {
            return false;
        };
        seat.gives_way.notify_one();
        true
    }
}

impl Permit {
    /// Returns the shared state of the connection.
    pub(super) fn seat(&self) -> Seat {
        self.seat.clone()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.places.unread.disconnect(self.number);
        let mut connections = self.places.lock();
        connections.seats.remove(&self.number);
        connections.reserved -= usize::from(self.is_reserved);
        if let Some(peer) = self.peer
            && let Some(of_peer) = connections.by_peer.get_mut(&peer)
        {
            of_peer.connections -= 1;
            if of_peer.connections == 0 {
                connections.by_peer.remove(&peer);
            }
        }
    }
}

/// Returns the address that connections are counted by: for IPv6 the /64 network, which sites are assigned as a whole (RFC 6177).
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

    use super::*;

    fn anybody(text: &str) -> Guest {
        Guest::Anybody(Some(text.parse().unwrap()))
    }

    /// Makes `count` permits busy.
    fn busy(permits: &[Permit]) {
        for permit in permits {
            permit.seat.set_busy(true);
        }
    }

    #[test]
    fn one_address_leaves_places_for_others_and_all_are_given_back() {
        let places = Places::new(3, 2, 10);
        let (a, b) = (anybody("192.0.2.1"), anybody("192.0.2.2"));
        let first = places.take(a).unwrap();
        let second = places.take(a).unwrap();
        assert_eq!(places.take(a).unwrap_err(), Full::Peer);
        let third = places.take(b).unwrap();
        let all = [first, second, third];
        busy(&all);
        assert_eq!(places.take(Guest::Anybody(None)).unwrap_err(), Full::All);
        let [first, _second, third] = all;
        drop((first, third));
        let _again = places.take(a).unwrap();
        assert_eq!(places.lock().by_peer.len(), 1, "nothing is kept of who left");
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one_address() {
        let places = Places::new(10, 2, 10);
        let _taken = ["2001:db8::1", "2001:db8::ffff:1"].map(|it| places.take(anybody(it)).unwrap());
        assert_eq!(places.take(anybody("2001:db8:0:0:1::")).unwrap_err(), Full::Peer);
        let _other = places.take(anybody("2001:db8:0:1::1")).unwrap();
        let _mapped = ["::ffff:192.0.2.1", "192.0.2.1"].map(|it| places.take(anybody(it)).unwrap());
        assert_eq!(places.take(anybody("::ffff:192.0.2.1")).unwrap_err(), Full::Peer);
    }

    #[test]
    fn administrators_have_places_beyond_all_others() {
        let places = Places::new(1, 100, 10);
        let first = [places.take(anybody("192.0.2.1")).unwrap()];
        busy(&first);
        let administrators: Vec<_> =
            (0..RESERVED).map(|_| places.take(Guest::Administrator(None)).unwrap()).collect();
        busy(&administrators);
        assert_eq!(places.take(Guest::Administrator(None)).unwrap_err(), Full::All);
        drop(administrators);
        assert_eq!(places.take(anybody("192.0.2.1")).unwrap_err(), Full::All);
        assert_eq!(places.lock().reserved, 0);
    }

    #[test]
    fn a_reflection_stream_counts_as_several() {
        let places = Places::new(10, 10, 4 * REFLECTION_WEIGHT);
        let client = places.take(anybody("192.0.2.1")).unwrap();
        let open: Vec<_> = (0..2).filter_map(|_| client.seat.open_stream(StreamKind::Reflection)).collect();
        assert_eq!(open.len(), 2);
        assert!(client.seat.open_stream(StreamKind::Reflection).is_none());
        drop(open);
        assert!(client.seat.open_stream(StreamKind::Reflection).is_some());
    }

    #[test]
    fn a_probe_always_finds_room() {
        let places = Places::for_probes(3, 2);
        let probe = places.take(anybody("192.0.2.1")).unwrap();
        let now = BootClock.moment();
        let slow = [(); 2].map(|()| places.take_at(anybody("192.0.2.2"), now).unwrap());
        let gives_way = |permit: &Permit| permit.seat.gives_way().now_or_never().is_some();
        let _third = places.take_at(anybody("192.0.2.2"), now).unwrap();
        assert!(
            gives_way(&slow[0]) || gives_way(&slow[1]),
            "an address over its limit makes room by its own"
        );
        let _other = places.take_at(anybody("192.0.2.3"), now).unwrap();
        assert!(!gives_way(&probe), "the address with the most connections makes room");
    }

    #[test]
    fn the_longest_idle_connection_of_whoever_has_most_gives_way() {
        let places = Places::new(3, 3, 10);
        let (many, few) = (anybody("192.0.2.1"), anybody("192.0.2.2"));
        let of_few = places.take(few).unwrap();
        let of_many = [places.take(many).unwrap(), places.take(many).unwrap()];
        let now = BootClock.moment();
        assert_eq!(places.take_at(few, now).unwrap_err(), Full::All, "none is idle for long");
        of_many[0].seat.set_busy(true);
        let later = now.after(GIVES_WAY_AFTER * 2);
        let _new = places.take_at(few, later).unwrap();
        let gives_way = |permit: &Permit| permit.seat.gives_way().now_or_never().is_some();
        assert!(gives_way(&of_many[1]));
        assert!(!gives_way(&of_many[0]) && !gives_way(&of_few));
        let _newer = places.take_at(few, later).unwrap();
        assert!(gives_way(&of_few));
    }
}
