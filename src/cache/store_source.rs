//! The store as the last source of entries.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use super::{Breaker, Demand, Found, KeySource, Knowledge, Tier};
use crate::domain::KeyHash;
use crate::repository::{ErrorKind, KeyRepository, RepositoryError, Result};

/// Loads from a repository.
#[derive(Debug)]
pub struct StoreSource {
    repository: Arc<dyn KeyRepository>,
    knowledge: Arc<Knowledge>,
    breaker: Arc<Breaker>,
}

impl StoreSource {
    /// Loads from `repository` while `breaker` lets it.
    pub fn new(repository: Arc<dyn KeyRepository>, knowledge: Arc<Knowledge>, breaker: Arc<Breaker>) -> Self {
        Self { repository, knowledge, breaker }
    }
}

impl fmt::Display for StoreSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.repository.fmt(f)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl KeySource for StoreSource {
    fn peek(&self, _: &KeyHash, _: &Demand) -> Option<Found> {
        None
    }

    async fn find(&self, hash: &KeyHash, _: &Demand) -> Result<Found> {
        let asked = self.breaker.check(hash)?;
        // Before anything is read: what is found reflects all that was known by now.
        let noted = self.knowledge.note(hash).ok_or_else(|| {
            RepositoryError::new(ErrorKind::Unavailable, "the store's change feed was not read yet")
        })?;
        let outcome = self.repository.get_by_hash(hash).await;
        asked.ended(&outcome);
        Ok(Found {
            entry: self.knowledge.loaded(hash, &noted, outcome?),
            tier: Tier::Store,
            as_of: noted.began,
        })
    }
}
