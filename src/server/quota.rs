//! Limits an amount in total and per client address.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// An amount that all clients share. While more than half of it is taken, one address may take at most a
/// quarter.
#[derive(Clone, Debug)]
pub(super) struct Quota {
    max: usize,
    of_all: Arc<AtomicUsize>,
    /// Amount that this address has taken. `None` for a Unix socket.
    of_peer: Option<Arc<AtomicUsize>>,
}

/// An amount that was taken from a [`Quota`]. Dropping it returns the amount.
#[derive(Debug)]
pub(super) struct QuotaPermit {
    quota: Quota,
    amount: usize,
}

impl Quota {
    /// Creates the quota of a client. `of_all` and `of_peer` count the amounts that all clients, and this
    /// address, have taken of `max`.
    pub(super) fn new(max: usize, of_all: &Arc<AtomicUsize>, of_peer: Option<&Arc<AtomicUsize>>) -> Self {
        Self { max, of_all: Arc::clone(of_all), of_peer: of_peer.cloned() }
    }

    /// Creates a quota without a limit.
    pub(super) fn unlimited() -> Self {
        Self { max: usize::MAX, of_all: Arc::default(), of_peer: None }
    }

    /// Takes `amount`. Returns `None` if the quota is used up.
    pub(super) fn take(&self, amount: usize) -> Option<QuotaPermit> {
        self.add(amount).then(|| QuotaPermit { quota: self.clone(), amount })
    }

    /// Takes `amount` even if the quota is used up.
    pub(super) fn take_beyond_limit(&self, amount: usize) -> QuotaPermit {
        self.of_all.fetch_add(amount, Ordering::Relaxed);
        if let Some(of_peer) = &self.of_peer {
            of_peer.fetch_add(amount, Ordering::Relaxed);
        }
        QuotaPermit { quota: self.clone(), amount }
    }

    fn add(&self, amount: usize) -> bool {
        let of_all = self.of_all.fetch_add(amount, Ordering::Relaxed);
        let of_peer = self.of_peer.as_ref().map_or(0, |of_peer| of_peer.fetch_add(amount, Ordering::Relaxed));
        let fits = of_all < self.max / 2 || (of_all < self.max && of_peer < self.max / 4);
        if !fits {
            self.release(amount);
        }
        fits
    }

    fn release(&self, amount: usize) {
        self.of_all.fetch_sub(amount, Ordering::Relaxed);
        if let Some(of_peer) = &self.of_peer {
            of_peer.fetch_sub(amount, Ordering::Relaxed);
        }
    }
}

impl QuotaPermit {
    /// Takes `amount` more. Returns false, and takes nothing, if the quota is used up.
    pub(super) fn grow(&mut self, amount: usize) -> bool {
        let has_grown = self.quota.add(amount);
        if has_grown {
            self.amount += amount;
        }
        has_grown
    }
}

impl Drop for QuotaPermit {
    fn drop(&mut self) {
        self.quota.release(self.amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_can_not_use_up_the_quota() {
        let of_all = Arc::default();
        let [first, second] = [(); 2].map(|()| Arc::default());
        let quota = |of_peer| Quota::new(8, &of_all, of_peer);
        let mut permit = quota(Some(&first)).take(1).unwrap();
        assert!(permit.grow(3));
        assert!(
            quota(Some(&first)).take(1).is_none(),
            "half of the quota is taken, and this address has more than a quarter"
        );
        let _second = [(); 2].map(|()| quota(Some(&second)).take(1).unwrap());
        assert!(quota(Some(&second)).take(1).is_none(), "this address has a quarter");
        let _socket = [(); 2].map(|()| quota(None).take(1).unwrap());
        assert!(quota(None).take(1).is_none(), "the whole quota is taken");
        assert!(Quota::unlimited().take(1_000_000).is_some());
        drop(permit);
        assert!(quota(Some(&first)).take(1).is_some());
    }
}
