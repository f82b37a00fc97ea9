//! The cache in this process.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use moka::Expiry;
use moka::ops::compute::Op;
use moka::sync::Cache;

use super::protocol::{EntryKind, may_replace};
use super::{Entry, KeyCache, Knowledge, Tier};
use crate::domain::{ApiKey, KeyHash, KeyId, Moment, Stopwatch};

/// Approximate size of an entry in bytes without the texts of its record. Measured.
const ENTRY_BYTES: usize = 700;

/// Limits of the cache.
#[derive(Clone, Copy, Debug)]
pub struct MokaOptions {
    /// Maximum number or size of records.
    pub capacity: Capacity,
    /// Maximum lifetime of a record, from the beginning of its load.
    pub ttl: Duration,
    /// Maximum number of negative entries. They are counted separately from records.
    pub max_negative: u64,
    /// Maximum lifetime of a negative entry, from the beginning of its load.
    pub negative_ttl: Duration,
}

/// Maximum number or size of the records in a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// Number of records.
    Entries(u64),
    /// Approximate memory size of the records in bytes.
    Bytes(u64),
}

/// Stores entries in this process's memory. Negative entries are counted separately, so that a flood of
/// random keys can't evict records.
///
/// It evicts entries that don't meet the fences and never stores such entries, so hits need few checks.
#[derive(Clone)]
pub struct MokaCache {
    records: Cache<KeyHash, Entry>,
    negative: Cache<KeyHash, Entry>,
    knowledge: Arc<Knowledge>,
    options: MokaOptions,
}

impl MokaCache {
    /// Creates an empty cache.
    #[must_use]
    pub fn new(options: MokaOptions, knowledge: Arc<Knowledge>, stopwatch: Arc<dyn Stopwatch>) -> Self {
        let until = KeptUntil(stopwatch);
        let records = match options.capacity {
            Capacity::Entries(count) => Cache::builder().max_capacity(count),
            Capacity::Bytes(bytes) => Cache::builder().max_capacity(bytes).weigher(|_, entry| weight(entry)),
        };
        let records = records.expire_after(until.clone()).build();
        let negative = Cache::builder().max_capacity(options.max_negative).expire_after(until).build();
        Self { records, negative, knowledge, options }
    }

    /// Returns the approximate numbers of records and of negative entries.
    #[must_use]
    pub fn len(&self) -> (u64, u64) {
        for cache in [&self.records, &self.negative] {
            cache.run_pending_tasks();
        }
        (self.records.entry_count(), self.negative.entry_count())
    }

    fn of(&self, kind: EntryKind) -> &Cache<KeyHash, Entry> {
        match kind {
            EntryKind::Record => &self.records,
            EntryKind::Negative => &self.negative,
        }
    }

    fn put_entry(&self, hash: &KeyHash, entry: &Entry) {
        let (same, other, ttl) = match entry.kind() {
            EntryKind::Record => (&self.records, &self.negative, self.options.ttl),
            EntryKind::Negative => (&self.negative, &self.records, self.options.negative_ttl),
        };
        let kept = entry.kept_for(ttl, hash, self.knowledge.moment());
        let is_stale = |there: &Entry| !self.knowledge.fits(hash, there);
        // Serialised with all other operations on this hash. A fence that was raised before is seen here. A
        // fence that is raised later is followed by an eviction, which waits for this operation.
        same.entry_by_ref(hash).and_compute_with(|there| {
            let there = there.map(moka::Entry::into_value);
            let is_newer =
                there.as_ref().is_some_and(|it| !may_replace(kept.applied_revision, it.applied_revision));
            match there {
                Some(there) if is_newer && !is_stale(&there) => Op::Nop,
                _ if self.knowledge.fits(hash, &kept) => Op::Put(kept.clone()),
                Some(there) if is_stale(&there) => Op::Remove,
                _ => Op::Nop,
            }
        });
        other.entry_by_ref(hash).and_compute_with(|there| match there.as_ref().map(moka::Entry::value) {
            Some(there) if may_replace(kept.applied_revision, there.applied_revision) || is_stale(there) => {
                Op::Remove
            }
            _ => Op::Nop,
        });
    }

    fn evict_stale(&self, hash: &KeyHash) {
        for kind in [EntryKind::Record, EntryKind::Negative] {
            self.of(kind).entry_by_ref(hash).and_compute_with(|there| match there {
                Some(there) if !self.knowledge.fits(hash, there.value()) => Op::Remove,
                _ => Op::Nop,
            });
        }
    }
}

/// Computes expiry with the stopwatch. moka's own clock does not advance while the machine is suspended, so
/// hits are also compared with `kept_until`.
#[derive(Clone)]
struct KeptUntil(Arc<dyn Stopwatch>);

impl KeptUntil {
    fn remaining(&self, kept_until: Moment) -> Duration {
        kept_until.since(self.0.moment())
    }
}

impl Expiry<KeyHash, Entry> for KeptUntil {
    fn expire_after_create(&self, _: &KeyHash, entry: &Entry, _: Instant) -> Option<Duration> {
        Some(self.remaining(entry.kept_until))
    }

    // moka keeps the previous expiry unless this returns another one.
    fn expire_after_update(
        &self,
        _: &KeyHash,
        entry: &Entry,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(self.remaining(entry.kept_until))
    }
}

/// Returns the approximate size of an entry in bytes.
fn weight(entry: &Entry) -> u32 {
    let texts = entry.key.as_deref().map_or(0, |key| key.size() - size_of::<ApiKey>());
    u32::try_from(ENTRY_BYTES + texts).unwrap_or(u32::MAX)
}

impl fmt::Display for MokaCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.options.capacity {
            Capacity::Entries(count) => write!(f, "Moka({count} entries)"),
            Capacity::Bytes(bytes) => write!(f, "Moka({bytes} bytes)"),
        }
    }
}

impl fmt::Debug for MokaCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MokaCache").field("options", &self.options).finish_non_exhaustive()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl KeyCache for MokaCache {
    fn tier(&self) -> Tier {
        Tier::Local
    }

    fn peek(&self, hash: &KeyHash) -> Option<Entry> {
        self.records.get(hash).or_else(|| self.negative.get(hash))
    }

    fn find_hash(&self, id: KeyId) -> Option<KeyHash> {
        let is_record = |entry: &Entry| entry.key.as_ref().is_some_and(|key| key.id == id);
        self.records.iter().find_map(|(hash, entry)| is_record(&entry).then_some(*hash))
    }

    async fn get(&self, hash: &KeyHash) -> Option<Entry> {
        self.peek(hash).filter(|entry| entry.kept_until > self.knowledge.moment())
    }

    async fn put(&self, hash: &KeyHash, entry: &Entry) {
        self.put_entry(hash, entry);
    }

    async fn remove(&self, hash: &KeyHash) {
        self.evict_stale(hash);
    }

    async fn forget(&self, hash: &KeyHash) {
        for kind in [EntryKind::Record, EntryKind::Negative] {
            self.of(kind).invalidate(hash);
        }
    }

    async fn clear(&self) {
        self.records.invalidate_all();
        self.negative.invalidate_all();
    }
}
