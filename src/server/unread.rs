//! Limits the bytes of answers that clients don't read.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::body::Bytes;
use tokio::sync::Notify;

/// Maximum number of bytes of unread answers on all connections together, without those of administrators.
const MAX_BYTES: usize = 8 * 1024 * 1024;
/// Data below this size doesn't count: its number is limited by that of open streams.
const MIN_COUNTED_BYTES: usize = 2 * 1024;

/// The unread answers of all connections.
#[derive(Debug, Default)]
pub(super) struct UnreadAnswers {
    bytes: AtomicUsize,
    /// Connections by their number, without those that are being closed to make room.
    connections: Mutex<HashMap<u64, Arc<Unread>>>,
}

/// The unread answers of one connection.
#[derive(Debug)]
pub(super) struct Unread {
    all: Arc<UnreadAnswers>,
    /// The network address that connections are counted by.
    peer: Option<IpAddr>,
    bytes: AtomicUsize,
    is_closed: Notify,
}

/// Data of an answer that counts as unread until this is dropped.
struct UnreadData {
    connection: Arc<Unread>,
    data: Bytes,
}

impl UnreadAnswers {
    /// Adds the connection `number` of `peer`.
    pub(super) fn connect(self: &Arc<Self>, number: u64, peer: Option<IpAddr>) -> Arc<Unread> {
        let connection =
            Unread { all: Arc::clone(self), peer, bytes: AtomicUsize::new(0), is_closed: Notify::new() };
        let connection = Arc::new(connection);
        self.lock().insert(number, Arc::clone(&connection));
        connection
    }

    /// Removes the connection `number`, which has ended.
    pub(super) fn disconnect(&self, number: u64) {
        self.lock().remove(&number);
    }

    /// Closes connections until the unread answers of the others are within the limit: of the address with the most unread bytes
    /// the connection with the most.
    fn make_room(&self) {
        let mut connections = self.lock();
        loop {
            let mut of_peers = HashMap::new();
            for connection in connections.values() {
                *of_peers.entry(connection.peer).or_insert(0) += connection.bytes();
            }
            if of_peers.values().sum::<usize>() <= MAX_BYTES {
                return;
            }
            let largest = connections
                .iter()
                .max_by_key(|(_, connection)| (of_peers.get(&connection.peer).copied(), connection.bytes()));
            let Some(connection) = largest.map(|(number, _)| *number).and_then(|it| connections.remove(&it))
            else {
                return;
            };
            connection.is_closed.notify_one();
        }
    }

    // The map is consistent whatever panicked.
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Unread>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Unread {
    /// Counts `data` of an answer until the transport has sent and dropped it. Closes a connection, maybe this one, if all unread
    /// answers together exceed the limit.
    pub(super) fn count(self: &Arc<Self>, data: Bytes) -> Bytes {
        let bytes = data.len();
        if bytes < MIN_COUNTED_BYTES {
            return data;
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.all.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > MAX_BYTES {
            self.all.make_room();
        }
        Bytes::from_owner(UnreadData { connection: Arc::clone(self), data })
    }

    /// Completes when the connection has to be closed.
    pub(super) async fn is_closed(&self) {
        self.is_closed.notified().await;
    }

    fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl AsRef<[u8]> for UnreadData {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for UnreadData {
    fn drop(&mut self) {
        self.connection.bytes.fetch_sub(self.data.len(), Ordering::Relaxed);
        self.connection.all.bytes.fetch_sub(self.data.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn is_closed(connection: &Unread) -> bool {
        connection.is_closed().now_or_never().is_some()
    }

    fn data(bytes: usize) -> Bytes {
        vec![0; bytes].into()
    }

    #[test]
    fn the_largest_connection_of_the_largest_address_is_closed() {
        let all = Arc::new(UnreadAnswers::default());
        let [first, second] = ["192.0.2.1", "192.0.2.2"].map(|peer| peer.parse().ok());
        let (small, large) = (all.connect(1, first), all.connect(2, first));
        let largest = all.connect(3, second);
        let _small = small.count(data(MAX_BYTES / 4));
        let _large = large.count(data(MAX_BYTES / 4 + 2 * MIN_COUNTED_BYTES));
        let of_largest = largest.count(data(MAX_BYTES / 2 - 2 * MIN_COUNTED_BYTES));
        assert!([&small, &large, &largest].iter().all(|it| !is_closed(it)));
        let more = small.count(data(MIN_COUNTED_BYTES));
        assert!(is_closed(&large) && !is_closed(&small) && !is_closed(&largest));
        drop((more, of_largest));
        let other = all.connect(4, second);
        let _more = other.count(data(MAX_BYTES / 2));
        assert!(!is_closed(&other), "what is being closed doesn't count");
    }

    #[test]
    fn what_was_read_does_not_count() {
        let all = Arc::new(UnreadAnswers::default());
        let connection = all.connect(1, None);
        for _ in 0..3 {
            drop(connection.count(data(MAX_BYTES)));
        }
        assert!(!is_closed(&connection));
        assert_eq!((all.bytes.load(Ordering::Relaxed), connection.bytes()), (0, 0));
        drop(connection.count(data(MAX_BYTES + 1)));
        assert!(is_closed(&connection));
        assert_eq!(connection.count(data(MIN_COUNTED_BYTES - 1)).len(), MIN_COUNTED_BYTES - 1);
        all.disconnect(1);
        assert_eq!(all.lock().len(), 0);
    }
}
