//! The backend, and the caches in front of it.

use anyhow::{Context as _, Result};

use super::Surroundings;
use super::store::{OpenedBackend, PoolReader};
use crate::cache::{CacheStack, StackOptions};
use crate::repository::Backend;

/// An opened backend, and the caches in front of it.
pub(super) struct Storage {
    /// The backend without the caches, for calls that don't concern them: health checks, usage and the audit
    /// trail. A call that is dropped is cancelled, unlike one that goes through
    /// [`CachedRepository`](crate::cache::CachedRepository).
    pub(super) uncached: Backend,
    pub(super) stack: CacheStack,
    /// Reads the number of connections to the backend. `None` if the backend does not report it.
    pub(super) pools: Option<PoolReader>,
}

impl Storage {
    /// Puts the caches of `options` in front of the backend.
    ///
    /// # Errors
    /// Returns an error if the URL of the Redis cache or one of its files can't be used.
    pub(super) async fn build(
        opened: OpenedBackend,
        options: &StackOptions,
        surroundings: &Surroundings,
    ) -> Result<Self> {
        let OpenedBackend { backend, pools } = opened;
        let uncached = backend.clone();
        let options = StackOptions { custom: surroundings.cache.clone(), ..options.clone() };
        let Surroundings { entropy, stopwatch, .. } = surroundings;
        let stack = CacheStack::build(backend, &options, entropy, stopwatch).await;
        let stack = stack.context("can't set up the caches")?;
        if stack.feed.is_none() && stack.has_caches {
            tracing::warn!(
                "the backend has no change feed: a revocation by another replica takes effect when the cached record expires (cache.ttl)"
            );
        }
        Ok(Self { uncached, stack, pools })
    }
}
