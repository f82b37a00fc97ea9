//! Metrics of client connections.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Metrics of client connections.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnectionMetrics {
    open: Family<WorkerLabel, Gauge>,
    rejected: Family<ReasonLabel, Counter>,
    closed: Family<ReasonLabel, Counter>,
}

/// Reason for not serving a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionRejection {
    /// The total limit was reached.
    All,
    /// The limit of the address was reached.
    Peer,
    /// The connection did not begin with HTTP/2, or its TLS handshake failed.
    Handshake,
}

/// Reason for closing a connection that was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionClosure {
    /// The connection was idle, and a new connection needed its slot.
    Idle,
    /// The client did not read its responses, and their memory was needed.
    UnreadResponses,
    /// The client held streams that did not wait for this server, and another client needed one.
    HeldStreams,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WorkerLabel {
    worker: u64,
}

impl ConnectionMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("connections", "Open client connections by worker", self.open.clone());
        registry.register(
            "connections_refused",
            "Rejected connections, by the limit that was reached, or because of a failed handshake",
            self.rejected.clone(),
        );
        registry.register(
            "connections_closed",
            "Connections that were closed to make room for others, by reason",
            self.closed.clone(),
        );
    }

    /// Returns the gauge of open connections of a worker.
    pub(crate) fn of_worker(&self, worker: usize) -> Gauge {
        self.open.get_or_create_owned(&WorkerLabel { worker: u64::try_from(worker).unwrap_or(u64::MAX) })
    }

    /// Returns the counter of connections that were not served for the reason `rejection`.
    pub(crate) fn rejected(&self, rejection: ConnectionRejection) -> Counter {
        let reason = match rejection {
            ConnectionRejection::All => "max_connections",
            ConnectionRejection::Peer => "max_connections_per_peer",
            ConnectionRejection::Handshake => "handshake",
        };
        self.rejected.get_or_create_owned(&ReasonLabel { reason })
    }

    /// Returns the counter of connections that were closed for the reason `closure`.
    pub(crate) fn closed(&self, closure: ConnectionClosure) -> Counter {
        let reason = match closure {
            ConnectionClosure::Idle => "idle",
            ConnectionClosure::UnreadResponses => "unread_answers",
            ConnectionClosure::HeldStreams => "held_streams",
        };
        self.closed.get_or_create_owned(&ReasonLabel { reason })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}
