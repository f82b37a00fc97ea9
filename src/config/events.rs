//! `[events]`

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ConfigError, HumanDuration};

/// The value of `1year`: 365.25 days.
const YEAR: Duration = Duration::from_hours(8_766);
/// Minimum retention. Other replicas read events as their change feed, so events must outlive short outages.
const MIN_RETENTION: Duration = Duration::from_hours(1);

/// Audit trail.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EventsConfig {
    /// Retention of the audit trail, at least 1h. Every hour, one replica at a time deletes older events. On Redis,
    /// `store.redis.max_events_per_shard` can delete them earlier. `"0s"` keeps events without limit.
    pub retention: HumanDuration,
}

impl Default for EventsConfig {
    fn default() -> Self {
        Self { retention: HumanDuration(YEAR) }
    }
}

impl EventsConfig {
    /// Returns the time after which events are deleted. `None` if they are kept forever.
    pub(super) fn parse(&self) -> Result<Option<Duration>, ConfigError> {
        let retention = (!self.retention.0.is_zero()).then_some(self.retention.0);
        if retention.is_some_and(|retention| retention < MIN_RETENTION) {
            return Err(ConfigError::invalid(
                "events.retention",
                "must be at least 1h, or 0 to keep all events",
            ));
        }
        Ok(retention)
    }
}
