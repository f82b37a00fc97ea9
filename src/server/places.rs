//! Limits the number of connections and streams, in total and per client address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::domain::{BootClock, Moment, Stopwatch as _};

/// Additional connections for administrators, so that other clients can't lock them out.
const RESERVED: usize = 64;
/// Minimum idle time after which a connection may be closed to make room for a new one.
const GIVES_WAY_AFTER: Duration = Duration::from_secs(1);

/// The limits, and the connections that count against them.
#[derive(Debug)]
pub(super) struct Places {
    max: usize,
    max_per_peer: usize,
    max_streams: usize,
    /// Number of open streams, without those of administrators.
    streams: Arc<AtomicUsize>,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    last: u64,
    reserved: usize,
    by_peer: HashMap<IpAddr, Peer>,
    /// Connections that count against `max`: without reserved ones, and without those that are being closed to make room.
    seats: HashMap<u64, (Option<IpAddr>, Seat)>,
}

/// Connections and streams of one address.
#[derive(Debug, Default)]
struct Peer {
    connections: usize,
    streams: Arc<AtomicUsize>,
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
    /// `None` for administrators, whose streams are only limited per connection.
    streams: Option<Streams>,
}

const BUSY: u64 = u64::MAX;

/// The counters that a stream counts against.
#[derive(Clone, Debug)]
struct Streams {
    max: usize,
    of_all: Arc<AtomicUsize>,
    /// `None` for a Unix socket.
    of_peer: Option<Arc<AtomicUsize>>,
}

/// A stream that counts until this is dropped.
#[derive(Debug)]
pub(super) struct OpenStream(Option<Streams>);

impl Streams {
    /// Counts a stream. While more than half of all streams are open, one address has at most a quarter of them.
    fn open(&self) -> bool {
        let of_all = self.of_all.fetch_add(1, Ordering::Relaxed);
        let of_peer = self.of_peer.as_ref().map_or(0, |of_peer| of_peer.fetch_add(1, Ordering::Relaxed));
        let is_free = of_all < self.max / 2 || (of_all < self.max && of_peer < self.max / 4);
        if !is_free {
            self.close();
        }
        is_free
    }

    fn close(&self) {
        self.of_all.fetch_sub(1, Ordering::Relaxed);
        if let Some(of_peer) = &self.of_peer {
            of_peer.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        if let Some(streams) = &self.0 {
            streams.close();
        }
    }
}

impl Seat {
    /// Creates the state of a connection that is idle from now on.
    fn new(streams: Option<Streams>) -> Self {
        let now = BootClock.moment().as_nanos();
        Self { idle_since: Arc::new(AtomicU64::new(now)), gives_way: Arc::default(), streams }
    }

    /// Counts a new stream of the connection. Returns `None` if a limit rejects it.
    pub(super) fn open_stream(&self) -> Option<OpenStream> {
        let is_open = self.streams.as_ref().is_none_or(Streams::open);
        is_open.then(|| OpenStream(self.streams.clone()))
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

    fn idle_since(&self) -> Option<Moment> {
        let since = self.idle_since.load(Ordering::Relaxed);
        (since != BUSY).then(|| Moment::from_nanos(since))
    }
}

impl Places {
    /// Creates limits of `max` connections, `max_per_peer` connections per address, and `max_streams` streams. Streams of
    /// administrators don't count.
    pub(super) fn new(max: usize, max_per_peer: usize, max_streams: usize) -> Arc<Self> {
        let (streams, taken) = (Arc::default(), Mutex::default());
        Arc::new(Self { max, max_per_peer, max_streams, streams, taken })
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
        let mut taken = self.lock();
        let of_peer = peer.and_then(|peer| taken.by_peer.get(&peer)).map_or(0, |peer| peer.connections);
        if peer.is_some() && of_peer >= self.max_per_peer {
            return Err(Full::Peer);
        }
        let is_full = taken.seats.len() >= self.max;
        let is_reserved = is_full && is_administrator && taken.reserved < RESERVED;
        if is_full && !is_reserved && !taken.make_room(now) {
            return Err(Full::All);
        }
        let streams_of_peer = peer.map(|peer| {
            let peer = taken.by_peer.entry(peer).or_default();
            peer.connections += 1;
            Arc::clone(&peer.streams)
        });
        let streams = (!is_administrator).then(|| Streams {
            max: self.max_streams,
            of_all: Arc::clone(&self.streams),
            of_peer: streams_of_peer,
        });
        taken.last += 1;
        taken.reserved += usize::from(is_reserved);
        let (number, seat) = (taken.last, Seat::new(streams));
        if !is_reserved {
            taken.seats.insert(number, (peer, seat.clone()));
        }
        Ok(Permit { places: Arc::clone(self), number, peer, is_reserved, seat })
    }

    // Counts are whole whatever panicked.
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Closes an idle connection, which no longer counts. Returns false if there is none.
    fn make_room(&mut self, now: Moment) -> bool {
        let of_peer = |peer: &Option<IpAddr>| {
            peer.and_then(|peer| self.by_peer.get(&peer)).map_or(0, |peer| peer.connections)
        };
        let idle = self.seats.iter().filter_map(|(number, (peer, seat))| {
            let since = seat.idle_since().filter(|since| now.since(*since) >= GIVES_WAY_AFTER)?;
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
        let mut taken = self.places.lock();
        taken.seats.remove(&self.number);
        taken.reserved -= usize::from(self.is_reserved);
        if let Some(peer) = self.peer
            && let Some(of_peer) = taken.by_peer.get_mut(&peer)
        {
            of_peer.connections -= 1;
            if of_peer.connections == 0 {
                taken.by_peer.remove(&peer);
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
    fn one_address_leaves_streams_for_others() {
        let places = Places::new(10, 10, 8);
        let many = [anybody("192.0.2.1"), anybody("192.0.2.1")].map(|it| places.take(it).unwrap());
        let mut open: Vec<_> = (0..4).map(|number| many[number % 2].seat.open_stream().unwrap()).collect();
        assert!(many[0].seat.open_stream().is_none(), "half of all, and more than its quarter");
        let other = places.take(anybody("192.0.2.2")).unwrap();
        open.extend([(); 2].map(|()| other.seat.open_stream().unwrap()));
        assert!(other.seat.open_stream().is_none(), "its quarter");
        let third = places.take(Guest::Anybody(None)).unwrap();
        open.extend([(); 2].map(|()| third.seat.open_stream().unwrap()));
        assert!(third.seat.open_stream().is_none(), "all");
        let administrator = places.take(Guest::Administrator(None)).unwrap();
        let _more: Vec<_> = (0..10).map(|_| administrator.seat.open_stream().unwrap()).collect();
        drop(open);
        assert!(many[0].seat.open_stream().is_some());
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
