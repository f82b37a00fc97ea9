//! The open connections and their addresses, and the choice of the connection that is closed to make room.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use crate::domain::Moment;
use crate::server::connection::state::ConnectionState;
use crate::telemetry::ConnectionClosure;

/// The open connections.
#[derive(Debug, Default)]
pub(super) struct Connections {
    /// Number of the latest connection.
    pub(super) last: u64,
    /// Number of open connections in the reserve for administrators.
    pub(super) reserved: usize,
    pub(super) by_peer: HashMap<IpAddr, PeerUsage>,
    /// Connections that count against the limit. Reserved connections and those that are being closed to make
    /// room don't.
    pub(super) states: HashMap<u64, Arc<ConnectionState>>,
}

/// Resources that the clients of one address use.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerUsage {
    pub(super) connections: usize,
    /// Number of open streams.
    pub(super) streams: Arc<AtomicUsize>,
    /// Number of bytes of incomplete messages.
    pub(super) partial: Arc<AtomicUsize>,
}

impl Connections {
    /// Returns the number of connections of `peer`.
    pub(super) fn count_of(&self, peer: IpAddr) -> usize {
        self.by_peer.get(&peer).map_or(0, |usage| usage.connections)
    }

    /// Counts a connection of `peer`. Returns the usage of its address.
    pub(super) fn add(&mut self, peer: IpAddr) -> PeerUsage {
        let usage = self.by_peer.entry(peer).or_default();
        usage.connections += 1;
        usage.clone()
    }

    /// Removes the connection `number` of `peer`.
    pub(super) fn remove(&mut self, number: u64, peer: Option<IpAddr>) {
        self.states.remove(&number);
        if let Some(peer) = peer
            && let Some(usage) = self.by_peer.get_mut(&peer)
        {
            usage.connections -= 1;
            if usage.connections == 0 {
                self.by_peer.remove(&peer);
            }
        }
    }

    /// Closes a connection that was idle for `min_idle`, of the address `only` if that is set. The connection
    /// no longer counts. Returns false if no connection qualifies.
    pub(super) fn make_room(&mut self, now: Moment, min_idle: Duration, only: Option<IpAddr>) -> bool {
        let of_peer = |peer: Option<IpAddr>| peer.map_or(0, |peer| self.count_of(peer));
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
    pub(super) fn close_largest(
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

/// Returns the address that connections are counted by. For IPv6 it is the /64 network, which sites are
/// assigned as a whole (RFC 6177).
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}
