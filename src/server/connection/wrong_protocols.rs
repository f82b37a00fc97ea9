//! Logs clients that use a wrong protocol, once for each address and protocol.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use super::first_bytes::Protocol;
use super::handshake::WrongProtocol;
use crate::telemetry::LogLimit;

/// Maximum number of addresses and protocols that are remembered. The oldest one is forgotten for a new one.
const MAX_REMEMBERED: usize = 256;

/// The clients that were logged. All workers share it. Only failed handshakes use it, so its lock does not
/// delay calls.
#[derive(Debug, Default)]
pub(in crate::server) struct WrongProtocolLog {
    logged: Mutex<VecDeque<Entry>>,
    limit: LogLimit,
}

/// A network and the protocol of a client in it. Unix sockets have no network.
type Entry = (Option<IpAddr>, WrongProtocol);

impl WrongProtocolLog {
    /// Logs a client at `peer`, which belongs to `network`, unless the same was logged before.
    pub(super) fn note(&self, network: Option<IpAddr>, peer: Option<IpAddr>, wrong: WrongProtocol) {
        let Some(left_out) = self.admit((network, wrong)) else { return };
        tracing::warn!(
            peer = peer.map(tracing::field::display),
            protocol = %wrong.protocol,
            left_out,
            "rejected a connection that did not begin with {}: {}",
            wrong.expected(),
            advice(wrong)
        );
    }

    /// Remembers `entry`. Returns the number of entries that the limit suppressed before, or `None` if this one
    /// may not be logged.
    fn admit(&self, entry: Entry) -> Option<u64> {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.contains(&entry) {
            return None;
        }
        let left_out = self.limit.admit()?;
        if logged.len() == MAX_REMEMBERED {
            logged.pop_front();
        }
        logged.push_back(entry);
        Some(left_out)
    }
}

fn advice(wrong: WrongProtocol) -> &'static str {
    match (wrong.protocol, wrong.needs_tls) {
        (Protocol::Proxy, _) => {
            "a load balancer sends the PROXY protocol, which is not supported; disable it for this address"
        }
        (Protocol::Http1 { .. }, false) => {
            "the client or proxy uses HTTP/1.1, and gRPC needs HTTP/2; probes and metrics are served at `telemetry.listen`"
        }
        (Protocol::Http1 { .. }, true) => "the client or proxy uses HTTP/1.1 without TLS",
        (Protocol::Http2, _) => "the client does not use TLS, which `server.tls.cert_file` enables",
        (Protocol::Tls, false) => {
            "the client uses TLS, but `server.tls.cert_file` is not set, or this is a Unix socket"
        }
        (Protocol::Tls, true) | (Protocol::Unknown, _) => "the protocol is unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRONG: WrongProtocol = WrongProtocol { protocol: Protocol::Proxy, needs_tls: false };

    fn address(number: usize) -> IpAddr {
        IpAddr::V4(u32::try_from(number).unwrap().into())
    }

    #[test]
    fn each_address_and_protocol_is_logged_once() {
        let log = WrongProtocolLog::default();
        let other = WrongProtocol { protocol: Protocol::Tls, ..WRONG };
        for entry in
            [(Some(address(1)), WRONG), (Some(address(2)), WRONG), (Some(address(1)), other), (None, WRONG)]
        {
            assert_eq!(log.admit(entry), Some(0), "{entry:?}");
            assert_eq!(log.admit(entry), None, "{entry:?}");
        }
    }

    #[test]
    fn a_limited_number_of_clients_is_remembered() {
        let unlimited = LogLimit::per(std::time::Duration::from_hours(1), u64::MAX);
        let log = WrongProtocolLog { limit: unlimited, ..WrongProtocolLog::default() };
        for number in 0..=MAX_REMEMBERED {
            assert!(log.admit((Some(address(number)), WRONG)).is_some());
        }
        assert_eq!(log.logged.lock().unwrap().len(), MAX_REMEMBERED);
        assert!(log.admit((Some(address(MAX_REMEMBERED)), WRONG)).is_none());
        assert!(log.admit((Some(address(0)), WRONG)).is_some(), "the oldest one was forgotten");
    }

    #[test]
    fn a_suppressed_client_is_not_remembered() {
        let log = WrongProtocolLog {
            limit: LogLimit::per(std::time::Duration::from_hours(1), 0),
            ..WrongProtocolLog::default()
        };
        assert!(log.admit((Some(address(1)), WRONG)).is_none());
        assert!(log.logged.lock().unwrap().is_empty());
    }
}
