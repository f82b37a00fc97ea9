//! `[usage]`

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ConfigError, HumanDuration};

/// Recording of the last use of keys.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UsageConfig {
    /// Interval at which the last uses of keys are written to the backend. Must be more than 0.
    pub flush_interval: HumanDuration,
}

impl Default for UsageConfig {
    fn default() -> Self {
        Self { flush_interval: HumanDuration(Duration::from_secs(10)) }
    }
}

impl UsageConfig {
    /// Returns the interval at which last uses are written.
    pub(super) fn parse(&self) -> Result<Duration, ConfigError> {
        if self.flush_interval.0.is_zero() {
            return Err(ConfigError::invalid("usage.flush_interval", "must be more than zero"));
        }
        Ok(self.flush_interval.0)
    }
}
