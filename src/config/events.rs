//! `[events]`

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ConfigError, HumanDuration};

/// A year as the text `1year` stands for: 365.25 days.
const YEAR: Duration = Duration::from_hours(8_766);
/// The shortest time that events are kept: other replicas follow them.
const MIN_RETENTION: Duration = Duration::from_hours(1);

/// The audit trail.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EventsConfig {
    /// How long events are kept; 0: for ever.
    pub retention: HumanDuration,
}

impl Default for EventsConfig {
    fn default() -> Self {
        Self { retention: HumanDuration(YEAR) }
    }
}

impl EventsConfig {
    /// How long events are kept; `None`: for ever.
    #[must_use]
    pub fn retention(&self) -> Option<Duration> {
        (!self.retention.0.is_zero()).then_some(self.retention.0)
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.retention().is_some_and(|retention| retention < MIN_RETENTION) {
            return Err(ConfigError::invalid(
                "events.retention",
                "must be at least 1h, or 0 to keep all events",
            ));
        }
        Ok(())
    }
}
