//! Connections of clients.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Connections of clients.
#[derive(Clone, Debug, Default)]
pub struct ConnectionMetrics {
    open: Family<WorkerLabel, Gauge>,
    refused: Family<ReasonLabel, Counter>,
    closed: Family<ReasonLabel, Counter>,
}

/// Why a connection was not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionRefusal {
    /// There were as many as there may be.
    All,
    /// There were as many from its address.
    Peer,
    /// It did not begin with HTTP/2, or its TLS handshake failed.
    Handshake,
}

/// Reason for closing a connection that was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionClosure {
    /// It was idle, and a new connection needed its place.
    Idle,
    /// Its client did not read its answers, and their memory was needed.
    UnreadAnswers,
    /// Its client held streams without need, and another client needed one.
    HeldStreams,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WorkerLabel {
    worker: u64,
}

impl ConnectionMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("connections", "Open connections of clients, by worker", self.open.clone());
        registry.register(
            "connections_refused",
            "Connections that were not served, by the limit that was reached, or since they did not begin as they have to",
            self.refused.clone(),
        );
        registry.register(
            "connections_closed",
            "Connections that were closed to make room for others, by the reason",
            self.closed.clone(),
        );
    }

    /// Those of a worker.
    pub(crate) fn of_worker(&self, worker: usize) -> Gauge {
        self.open.get_or_create_owned(&WorkerLabel { worker: u64::try_from(worker).unwrap_or(u64::MAX) })
    }

    /// Those that were not served, by the reason.
    pub(crate) fn refused(&self, refusal: ConnectionRefusal) -> Counter {
        let reason = match refusal {
            ConnectionRefusal::All => "max_connections",
            ConnectionRefusal::Peer => "max_connections_per_peer",
            ConnectionRefusal::Handshake => "handshake",
        };
        self.refused.get_or_create_owned(&ReasonLabel { reason })
    }

    /// Returns the counter of connections that were closed for the reason `closure`.
    pub(crate) fn closed(&self, closure: ConnectionClosure) -> Counter {
        let reason = match closure {
            ConnectionClosure::Idle => "idle",
            ConnectionClosure::UnreadAnswers => "unread_answers",
            ConnectionClosure::HeldStreams => "held_streams",
        };
        self.closed.get_or_create_owned(&ReasonLabel { reason })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}
