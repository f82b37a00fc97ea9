//! `[feed]`

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CacheConfig, ConfigError, HumanDuration};

/// The shortest pause between polls: each is a question to the store.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// How the changes of other replicas are followed.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FeedConfig {
    /// How often the store is asked, unless it tells by itself that there is something new.
    pub poll_interval: HumanDuration,
}

impl Default for FeedConfig {
    fn default() -> Self {
        Self { poll_interval: HumanDuration(Duration::from_millis(500)) }
    }
}

impl FeedConfig {
    pub(super) fn check(&self, cache: &CacheConfig) -> Result<(), ConfigError> {
        if self.poll_interval.0 < MIN_INTERVAL {
            return Err(ConfigError::invalid("feed.poll_interval", "must be at least 10ms"));
        }
        // Between two polls the caches would be too old to be used.
        if self.poll_interval.0 >= cache.max_staleness.0 && !cache.max_staleness.0.is_zero() {
            return Err(ConfigError::invalid("feed.poll_interval", "must be less than cache.max_staleness"));
        }
        Ok(())
    }
}
