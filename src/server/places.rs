//! How many connections there may be: in all, and from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// The places for connections.
#[derive(Debug)]
pub(super) struct Places {
    max: usize,
    max_per_peer: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_peer: HashMap<IpAddr, usize>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// There are as many connections as there may be.
    All,
    /// There are as many from this address.
    Peer,
}

/// A place, given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    places: Arc<Places>,
    peer: Option<IpAddr>,
}

impl Places {
    /// `max` places, of which one address takes at most `max_per_peer`.
    pub(super) fn new(max: usize, max_per_peer: usize) -> Arc<Self> {
        Arc::new(Self { max, max_per_peer, taken: Mutex::default() })
    }

    /// Takes one for a connection from `peer`; those of Unix sockets have none.
    pub(super) fn take(self: &Arc<Self>, peer: Option<IpAddr>) -> Result<Permit, Full> {
        // Counts are whole whatever panicked.
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.all >= self.max {
            return Err(Full::All);
        }
        if let Some(peer) = peer {
            let of_peer = taken.by_peer.get(&peer).copied().unwrap_or_default();
            if of_peer >= self.max_per_peer {
                return Err(Full::Peer);
            }
            taken.by_peer.insert(peer, of_peer + 1);
        }
        taken.all += 1;
        Ok(Permit { places: Arc::clone(self), peer })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        if let Some(peer) = self.peer
            && let Some(of_peer) = taken.by_peer.get_mut(&peer)
        {
            *of_peer -= 1;
            if *of_peer == 0 {
                taken.by_peer.remove(&peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn one_address_leaves_places_for_others_and_all_are_given_back() {
        let places = Places::new(3, 2);
        let [a, b] = [1, 2].map(|last| Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last))));
        let first = places.take(a).unwrap();
        let _second = places.take(a).unwrap();
        assert_eq!(places.take(a).unwrap_err(), Full::Peer);
        let third = places.take(b).unwrap();
        assert_eq!(places.take(None).unwrap_err(), Full::All);
        drop((first, third));
        let _again = places.take(a).unwrap();
        assert_eq!(places.taken.lock().unwrap().by_peer.len(), 1, "nothing is kept of who left");
    }
}
