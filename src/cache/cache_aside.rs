//! The one cache-aside decorator, for any cache.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use super::{Demand, Entry, Found, KeyCache, KeySource, Knowledge};
use crate::domain::{KeyHash, Moment};
use crate::repository::Result;

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

    /// `entry` as this cache gave it, if it is fresh enough. `confirmed` is from before it was read.
    fn fresh(
        &self,
        hash: &KeyHash,
        entry: Entry,
        confirmed: Option<Moment>,
        demand: &Demand,
    ) -> Option<Found> {
        let as_of =
            self.knowledge.as_of(hash, &entry, confirmed).filter(|as_of| *as_of >= demand.oldest())?;
        Some(Found { entry, tier: self.cache.tier(), as_of })
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
        let confirmed = self.knowledge.confirmed(hash);
        let entry = self.cache.peek(hash)?;
        let may_serve = self.knowledge.is_of_this_history(&entry) && entry.kept_until > demand.asked_at;
        may_serve.then(|| self.fresh(hash, entry, confirmed, demand))?
    }

    async fn find(&self, hash: &KeyHash, demand: &Demand) -> Result<Found> {
        let confirmed = self.knowledge.confirmed(hash);
        if let Some(entry) = self.cache.get(hash).await
            && self.knowledge.fits(hash, &entry)
            && let Some(found) = self.fresh(hash, entry, confirmed, demand)
        {
            return Ok(found);
        }
        let found = self.inner.find(hash, demand).await?;
        // It keeps nothing that does not fit. Whether this call may have it is for whoever hands it on.
        self.cache.put(hash, &found.entry).await;
        Ok(found)
    }
}
