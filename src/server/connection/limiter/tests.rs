use futures_util::FutureExt as _;
use hyper::body::Bytes;

use super::unread_limit::{MAX_STALLED_BYTES, MAX_UNREAD_BYTES, STALLED_AFTER};
use super::*;
use crate::domain::ManualStopwatch;
use crate::grpc::methods::{Method, VALIDATE};
use crate::server::connection::state::{OpenStream, REFLECTION_WEIGHT};

fn client(address: &str) -> Client {
    Client::Public(Some(address.parse().unwrap()))
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

/// Returns limits, and the stopwatch that they use. It has advanced, as on a machine that runs for a while.
fn limits(
    max: usize,
    max_per_peer: usize,
    max_streams: usize,
) -> (Arc<ConnectionLimiter>, Arc<ManualStopwatch>) {
    let stopwatch = Arc::new(ManualStopwatch::default());
    stopwatch.advance(Duration::from_hours(1));
    let shared = Arc::<ManualStopwatch>::clone(&stopwatch);
    (ConnectionLimiter::new(max, max_per_peer, max_streams, shared), stopwatch)
}

#[test]
fn one_address_can_not_use_all_connections() {
    let (limiter, _) = limits(3, 2, 10);
    let (a, b) = (client("192.0.2.1"), client("192.0.2.2"));
    let all = [limiter.take(a).unwrap(), limiter.take(a).unwrap()];
    assert_eq!(limiter.take(a).unwrap_err(), LimitReached::Peer);
    let third = limiter.take(b).unwrap();
    for permit in all.iter().chain([&third]) {
        permit.state.begin_work();
    }
    assert_eq!(limiter.take(Client::Public(None)).unwrap_err(), LimitReached::All);
    drop(all);
    let taken = [limiter.take(Client::Public(None)).unwrap(), limiter.take(a).unwrap()];
    drop((third, taken));
    assert_eq!(limiter.lock().by_peer.len(), 0, "the counts of closed connections are removed");
}

#[test]
fn an_ipv6_network_counts_as_one_address() {
    let (limiter, _) = limits(10, 2, 10);
    let _taken = ["2001:db8::1", "2001:db8::ffff:1"].map(|it| limiter.take(client(it)).unwrap());
    assert_eq!(limiter.take(client("2001:db8:0:0:1::")).unwrap_err(), LimitReached::Peer);
    let _other = limiter.take(client("2001:db8:0:1::1")).unwrap();
    let _mapped = ["::ffff:192.0.2.1", "192.0.2.1"].map(|it| limiter.take(client(it)).unwrap());
    assert_eq!(limiter.take(client("::ffff:192.0.2.1")).unwrap_err(), LimitReached::Peer);
}

#[test]
fn connections_are_reserved_for_administrators() {
    let (limiter, _) = limits(1, 100, 10);
    let first = limiter.take(client("192.0.2.1")).unwrap();
    first.state.begin_work();
    let administrators: Vec<_> =
        (0..RESERVED).map(|_| limiter.take(Client::Administrator(None)).unwrap()).collect();
    for permit in &administrators {
        permit.state.begin_work();
    }
    assert_eq!(limiter.take(Client::Administrator(None)).unwrap_err(), LimitReached::All);
    drop(administrators);
    assert_eq!(limiter.take(client("192.0.2.1")).unwrap_err(), LimitReached::All);
    assert_eq!(limiter.lock().reserved, 0);
}

#[test]
fn a_reflection_stream_counts_as_several() {
    let (limiter, _) = limits(10, 10, 4 * REFLECTION_WEIGHT);
    let client = limiter.take(client("192.0.2.1")).unwrap();
    let reflection = Method::of("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo");
    let open: Vec<_> = (0..2).filter_map(|_| client.state.open_stream(reflection)).collect();
    assert_eq!((open.len(), client.state.held_streams()), (2, 2 * REFLECTION_WEIGHT));
    assert!(client.state.open_stream(reflection).is_none());
    assert!(client.state.open_stream(Method::of("/grpc.health.v1.Health/Check")).is_some());
    drop(open);
    assert!(client.state.open_stream(reflection).is_some());
}

#[test]
fn a_connection_that_holds_streams_is_closed_when_another_client_needs_one() {
    let (limiter, stopwatch) = limits(10, 10, 8);
    let [small, large] = [(); 2].map(|()| limiter.take(client("192.0.2.1")).unwrap());
    let other = limiter.take(client("192.0.2.2")).unwrap();
    let (_small, _large) = (open(&small, 1), open(&large, 3));
    let of_other = open(&other, 2);
    let client = limiter.take(client("192.0.2.3")).unwrap();
    let of_client = open(&client, 2);
    assert_eq!(of_client.len(), 2, "the streams are within the limit");
    assert!(large.state.open_stream(None).is_none(), "no address holds more than this one");
    stopwatch.advance(SEARCH_INTERVAL);
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
fn a_probe_is_never_rejected() {
    let limiter = ConnectionLimiter::for_probes(3, 2, Arc::new(ManualStopwatch::default()));
    let probe = limiter.take(client("192.0.2.1")).unwrap();
    let slow = [(); 2].map(|()| limiter.take(client("192.0.2.2")).unwrap());
    let _third = limiter.take(client("192.0.2.2")).unwrap();
    let closed = slow.iter().filter(|permit| is_closed(permit).is_some()).count();
    assert_eq!(closed, 1, "a connection of the address that is over its limit is closed");
    let _other = limiter.take(client("192.0.2.3")).unwrap();
    assert_eq!(is_closed(&probe), None, "a connection of the address with the most connections is closed");
}

#[test]
fn the_longest_idle_connection_of_the_address_with_the_most_is_closed() {
    let (limiter, stopwatch) = limits(3, 3, 10);
    let (many, few) = (client("192.0.2.1"), client("192.0.2.2"));
    let of_few = limiter.take(few).unwrap();
    let of_many = [limiter.take(many).unwrap(), limiter.take(many).unwrap()];
    assert_eq!(limiter.take(few).unwrap_err(), LimitReached::All, "no connection is idle for long");
    of_many[0].state.begin_work();
    // A stream that does not wait for this server does not keep a connection busy.
    let _held = open(&of_many[1], 1);
    stopwatch.advance(MIN_IDLE_TIME);
    let _new = limiter.take(few).unwrap();
    assert_eq!(is_closed(&of_many[1]), Some(ConnectionClosure::Idle));
    assert_eq!((is_closed(&of_many[0]), is_closed(&of_few)), (None, None));
    let _newer = limiter.take(few).unwrap();
    assert_eq!(is_closed(&of_few), Some(ConnectionClosure::Idle));
}

#[test]
fn the_stalled_client_with_the_most_unread_data_is_closed() {
    let (limiter, stopwatch) = limits(10, 10, 10);
    let [first, second] = [client("192.0.2.1"), client("192.0.2.2")];
    let [small, large] = [(); 2].map(|()| limiter.take(first).unwrap());
    let reads = limiter.take(second).unwrap();
    let _small = small.state.count_unread(data(MAX_STALLED_BYTES / 4));
    let _large = large.state.count_unread(data(MAX_STALLED_BYTES / 2));
    let _reads = reads.state.count_unread(data(MAX_STALLED_BYTES));
    limiter.close_unread(MAX_STALLED_BYTES, Some(stopwatch.moment()));
    assert!(
        [&small, &large, &reads].iter().all(|permit| is_closed(permit).is_none()),
        "no client is stalled yet"
    );
    stopwatch.advance(STALLED_AFTER);
    reads.state.note_taken();
    limiter.close_unread(MAX_STALLED_BYTES * 3 / 2, Some(stopwatch.moment()));
    assert_eq!(is_closed(&large), Some(ConnectionClosure::UnreadResponses));
    assert_eq!((is_closed(&small), is_closed(&reads)), (None, None));
}

#[test]
fn unread_responses_are_limited_even_if_clients_read() {
    let (limiter, _) = limits(10, 10, 10);
    let reads = limiter.take(client("192.0.2.1")).unwrap();
    let most = reads.state.count_unread(data(MAX_UNREAD_BYTES));
    assert_eq!(is_closed(&reads), None);
    drop(reads.state.count_unread(data(MAX_UNREAD_BYTES)));
    assert_eq!(is_closed(&reads), Some(ConnectionClosure::UnreadResponses));
    let administrator = limiter.take(Client::Administrator(None)).unwrap();
    drop(administrator.state.count_unread(data(MAX_UNREAD_BYTES)));
    assert_eq!(is_closed(&administrator), None);
    drop(most);
    assert_eq!(limiter.unread.load(Ordering::Relaxed), 0);
}
