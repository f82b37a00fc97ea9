//! The one cache-aside decorator, for any cache.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use super::{Demand, Entry, Found, KeyCache, KeySource, Knowledge};
use crate::domain::KeyHash;
use crate::repository::{ErrorKind, RepositoryError, Result};

/// How often a load whose result was overtaken by a change is repeated. Each time needs another change of that key, or of
/// so many keys that the fences overflow.
const MAX_ATTEMPTS: usize = 16;

/// Looks into a cache, then into what is behind it, and keeps what it found there.
#[derive(Debug)]
pub struct CacheAside {
    cache: Arc<dyn KeyCache>,
    inner: Arc<dyn KeySource>,
    knowledge: Arc<Knowledge>,
}

impl CacheAside {
    /// Puts `cache` in front of `inner`.
    pub fn new(cache: Arc<dyn KeyCache>, inner: Arc<dyn KeySource>, knowledge: Arc<Knowledge>) -> Self {
        Self { cache, inner, knowledge }
    }

    /// `entry` as this cache gave it, if it may be served.
    fn served(&self, hash: &KeyHash, entry: Entry, demand: &Demand) -> Option<Found> {
        self.may_serve(hash, &entry, demand).then(|| Found { entry, tier: self.cache.tier() })
    }

    fn may_serve(&self, hash: &KeyHash, entry: &Entry, demand: &Demand) -> bool {
        self.knowledge.fits(hash, entry) && self.knowledge.is_fresh(hash, entry, demand)
    }
}

impl fmt::Display for CacheAside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {}", self.cache, self.inner)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl KeySource for CacheAside {
    fn peek(&self, hash: &KeyHash, demand: &Demand) -> Option<Found> {
        let entry = self.cache.peek(hash)?;
        let may_serve = self.knowledge.is_of_this_history(&entry)
            && entry.kept_until > demand.asked_at
            && self.knowledge.is_fresh(hash, &entry, demand);
        may_serve.then(|| Found { entry, tier: self.cache.tier() })
    }

    async fn find(&self, hash: &KeyHash, demand: &Demand) -> Result<Found> {
        if let Some(entry) = self.cache.get(hash).await
            && let Some(found) = self.served(hash, entry, demand)
        {
            return Ok(found);
        }
        for _ in 0..MAX_ATTEMPTS {
            let found = self.inner.find(hash, demand).await?;
            if self.may_serve(hash, &found.entry, demand) {
                self.cache.put(hash, &found.entry).await;
                return Ok(found);
            }
        }
        Err(RepositoryError::new(ErrorKind::Unavailable, "the key changes faster than it can be read"))
    }
}
