//! The state of one connection: its open streams, the calls that wait for this server, and its unread
//! responses. The calls of the connection update it, and the limiter reads it to choose a connection to close.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use hyper::body::Bytes;
use tokio::sync::Notify;

use super::limiter::ConnectionLimiter;
use super::unread::UnreadData;
use crate::domain::{Moment, Stopwatch};
use crate::grpc::methods::{Method, Service};
use crate::server::quota::{Quota, QuotaPermit};
use crate::telemetry::ConnectionClosure;

/// Number of streams that a reflection stream counts as. It can hold about 64 KiB of requests that its
/// handler has not read.
pub(super) const REFLECTION_WEIGHT: usize = 16;
/// Minimum size of data that counts as unread. The amount of smaller data is limited by the number of open
/// streams.
const MIN_COUNTED_BYTES: usize = 2 * 1024;

/// The state of a connection. It is shared by the calls of the connection, its driver and the limiter.
#[derive(Debug)]
pub(in crate::server) struct ConnectionState {
    /// The network address that the connection is counted by, or `None` for a Unix socket.
    peer: Option<IpAddr>,
    limits: StreamLimits,
    stopwatch: Arc<dyn Stopwatch>,
    /// Number of open streams, by weight.
    open: AtomicUsize,
    /// Number of calls that wait for this server.
    at_work: AtomicUsize,
    /// Start of the current period without a call that waits for this server, in nanoseconds.
    idle_since: AtomicU64,
    /// Number of bytes of responses that were not sent yet.
    unread: AtomicUsize,
    /// Time at which the client last took a part of a response, in nanoseconds.
    taken_at: AtomicU64,
    closure: OnceLock<ConnectionClosure>,
    closed: Notify,
}

/// The limits that a connection counts against. Connections of administrators are unlimited.
#[derive(Debug)]
pub(super) struct StreamLimits {
    pub(super) limiter: Weak<ConnectionLimiter>,
    /// Quota for open streams.
    pub(super) streams: Quota,
    /// Quota for bytes of incomplete messages.
    pub(super) partial: Quota,
    /// Whether unread responses count.
    pub(super) counts_unread: bool,
}

/// An open stream. It counts until this is dropped.
#[derive(Debug)]
pub(super) struct OpenStream {
    state: Arc<ConnectionState>,
    weight: usize,
    _permit: Option<QuotaPermit>,
}

impl ConnectionState {
    /// Creates the state of a connection of `peer`. The connection counts as idle from now on.
    pub(super) fn new(peer: Option<IpAddr>, limits: StreamLimits, stopwatch: Arc<dyn Stopwatch>) -> Self {
        let now = stopwatch.moment().as_nanos();
        Self {
            peer,
            limits,
            stopwatch,
            open: AtomicUsize::new(0),
            at_work: AtomicUsize::new(0),
            idle_since: AtomicU64::new(now),
            unread: AtomicUsize::new(0),
            taken_at: AtomicU64::new(now),
            closure: OnceLock::new(),
            closed: Notify::new(),
        }
    }

    pub(super) fn peer(&self) -> Option<IpAddr> {
        self.peer
    }

    /// Counts a new stream. Returns `None` if the limit is reached and no connection of another client can be
    /// closed. Streams for health checks are always opened.
    pub(super) fn open_stream(self: &Arc<Self>, method: Option<&Method>) -> Option<OpenStream> {
        let service = method.map(|method| method.service);
        let weight = if service == Some(Service::Reflection) { REFLECTION_WEIGHT } else { 1 };
        let permit = self.limits.streams.take(weight).or_else(|| {
            let limiter = self.limits.limiter.upgrade()?;
            limiter.close_holder(self.peer).then(|| self.limits.streams.take_beyond_limit(weight))
        });
        if permit.is_none() && service != Some(Service::Health) {
            return None;
        }
        self.open.fetch_add(weight, Ordering::Relaxed);
        Some(OpenStream { state: Arc::clone(self), weight, _permit: permit })
    }

    /// Returns the number of open streams that don't wait for this server: incomplete requests, responses
    /// that nobody reads, and long-lived streams.
    pub(super) fn held_streams(&self) -> usize {
        self.open.load(Ordering::Relaxed).saturating_sub(self.at_work.load(Ordering::Relaxed))
    }

    /// Returns the quota for bytes of incomplete messages.
    pub(super) fn partial(&self) -> Quota {
        self.limits.partial.clone()
    }

    /// Records that one more call waits for this server.
    pub(super) fn begin_work(&self) {
        self.at_work.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that a call no longer waits for this server.
    pub(super) fn end_work(&self) {
        self.idle_since.store(self.stopwatch.moment().as_nanos(), Ordering::Relaxed);
        self.at_work.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns whether a call waits for this server.
    pub(super) fn is_at_work(&self) -> bool {
        self.at_work.load(Ordering::Relaxed) > 0
    }

    /// Returns the start of the current period without a call that waits for this server, or `None` while a
    /// call does.
    pub(super) fn idle_since(&self) -> Option<Moment> {
        (!self.is_at_work()).then(|| Moment::from_nanos(self.idle_since.load(Ordering::Relaxed)))
    }

    /// Counts `data` of a response as unread until the transport has sent and dropped it.
    pub(super) fn count_unread(self: &Arc<Self>, data: Bytes) -> Bytes {
        let bytes = data.len();
        if bytes < MIN_COUNTED_BYTES || !self.limits.counts_unread {
            return data;
        }
        let Some(limiter) = self.limits.limiter.upgrade() else { return data };
        if self.unread.fetch_add(bytes, Ordering::Relaxed) == 0 {
            // Nothing was unread before, so the time without reading begins now.
            self.note_taken();
        }
        let counted = UnreadData::new(Arc::clone(self), data);
        limiter.add_unread(bytes);
        Bytes::from_owner(counted)
    }

    /// Stops counting `bytes` as unread.
    pub(super) fn forget_unread(&self, bytes: usize) {
        self.unread.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(limiter) = self.limits.limiter.upgrade() {
            limiter.remove_unread(bytes);
        }
    }

    pub(super) fn unread_bytes(&self) -> usize {
        self.unread.load(Ordering::Relaxed)
    }

    /// Records that the client took a part of a response.
    pub(super) fn note_taken(&self) {
        self.taken_at.store(self.stopwatch.moment().as_nanos(), Ordering::Relaxed);
    }

    /// Returns the time at which the client last took a part of a response.
    pub(super) fn taken_at(&self) -> Moment {
        Moment::from_nanos(self.taken_at.load(Ordering::Relaxed))
    }

    /// Requests that the connection close, for the reason `closure`.
    pub(super) fn close(&self, closure: ConnectionClosure) {
        let _ = self.closure.set(closure);
        self.closed.notify_one();
    }

    /// Completes when the connection has to be closed to make room, and returns the reason.
    pub(in crate::server) async fn closed(&self) -> ConnectionClosure {
        self.closed.notified().await;
        self.closure.get().copied().unwrap_or(ConnectionClosure::Idle)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.state.open.fetch_sub(self.weight, Ordering::Relaxed);
    }
}
