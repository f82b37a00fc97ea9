//! `[feed]`

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CacheConfig, ConfigError, HumanDuration};

/// Minimum interval between polls. Each poll is a read from the backend.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// Change feed, which delivers the changes of other replicas.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FeedConfig {
    /// Interval at which the backend is polled for changes of other replicas. PostgreSQL and Redis also notify replicas
    /// immediately.
    pub poll_interval: HumanDuration,
}

impl Default for FeedConfig {
    fn default() -> Self {
        Self { poll_interval: HumanDuration(Duration::from_millis(500)) }
    }
}

impl FeedConfig {
    /// Returns the interval between polls.
    pub(super) fn parse(&self, cache: &CacheConfig) -> Result<Duration, ConfigError> {
        if self.poll_interval.0 < MIN_INTERVAL {
            return Err(ConfigError::invalid("feed.poll_interval", "must be at least 10ms"));
        }
        // Otherwise the caches would be too stale to be used between two polls.
        if self.poll_interval.0 >= cache.max_staleness.0 && !cache.max_staleness.0.is_zero() {
            return Err(ConfigError::invalid("feed.poll_interval", "must be less than cache.max_staleness"));
        }
        Ok(self.poll_interval.0)
    }
}
