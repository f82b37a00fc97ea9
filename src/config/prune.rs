//! `[prune]`

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ConfigError, HumanDuration};

/// Deleting keys that expired long ago.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PruneConfig {
    /// How long a key has to be expired before it is deleted; 0: never.
    pub expired_for: HumanDuration,
    /// How often it is looked for such keys.
    pub interval: HumanDuration,
}

impl Default for PruneConfig {
    fn default() -> Self {
        Self { expired_for: HumanDuration(Duration::ZERO), interval: HumanDuration(Duration::from_hours(24)) }
    }
}

impl PruneConfig {
    /// How long a key has to be expired before it is deleted; `None`: for ever.
    #[must_use]
    pub fn expired_for(&self) -> Option<Duration> {
        (!self.expired_for.0.is_zero()).then_some(self.expired_for.0)
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.interval.0.is_zero() {
            return Err(ConfigError::invalid("prune.interval", "must be more than zero"));
        }
        Ok(())
    }
}
