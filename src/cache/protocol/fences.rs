//! Fences of keys, in bounded memory.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::ChangeId;

/// A bounded map from keys to the smallest applied revisions that may be served for them (rule 5).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Fences<K> {
    pub(super) capacity: usize,
    by_key: BTreeMap<K, ChangeId>,
    oldest_first: BTreeSet<(ChangeId, K)>,
    pub(super) watermark: ChangeId,
}

impl<K: Ord + Clone> Fences<K> {
    /// Creates a map without fences, whose keys have no minimum.
    pub(super) fn new(capacity: usize) -> Self {
        Self::with_watermark(capacity, ChangeId::NONE)
    }

    /// Creates a map without fences, whose keys have the minimum `watermark`.
    pub(super) fn with_watermark(capacity: usize, watermark: ChangeId) -> Self {
        Self { capacity, by_key: BTreeMap::new(), oldest_first: BTreeSet::new(), watermark }
    }

    /// Returns the number of fences.
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Returns the larger of the key's fence and the watermark.
    pub(super) fn minimum(&self, key: &K) -> ChangeId {
        self.by_key.get(key).copied().unwrap_or(ChangeId::NONE).later(self.watermark)
    }

    /// Raises the fence of `key` to `change`, unless its minimum is larger.
    pub(super) fn raise(&mut self, key: K, change: ChangeId) {
        if self.minimum(&key).revision >= change.revision {
            return;
        }
        if let Some(former) = self.by_key.insert(key.clone(), change) {
            self.oldest_first.remove(&(former, key.clone()));
        }
        self.oldest_first.insert((change, key));
        // Evict the oldest fence, and raise the watermark to it. It is then the minimum for all keys.
        while self.by_key.len() > self.capacity
            && let Some((oldest, key)) = self.oldest_first.pop_first()
        {
            self.watermark = self.watermark.later(oldest);
            self.by_key.remove(&key);
        }
    }
}
