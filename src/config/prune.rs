//! `[prune]`

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ConfigError, HumanDuration};

/// Deletion of expired keys.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PruneConfig {
    /// Time after its expiry at which a key is deleted, with the actor `system:prune` in the audit trail. Until then,
    /// the key is listed, and its verdict is "expired". `"0s"` never deletes expired keys.
    pub expired_for: HumanDuration,
    /// Interval between scans for such keys. Each scan reads all keys, page by page. Must be more than 0.
    pub interval: HumanDuration,
}

impl Default for PruneConfig {
    fn default() -> Self {
        Self { expired_for: HumanDuration(Duration::ZERO), interval: HumanDuration(Duration::from_hours(24)) }
    }
}

/// The parsed settings of `[prune]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PruneSettings {
    /// Time between the expiry of a key and its deletion.
    pub(crate) expired_for: Duration,
    /// Interval between scans.
    pub(crate) interval: Duration,
}

impl PruneConfig {
    /// Parses the settings. Returns `None` if expired keys are never deleted.
    pub(super) fn parse(&self) -> Result<Option<PruneSettings>, ConfigError> {
        if self.interval.0.is_zero() {
            return Err(ConfigError::invalid("prune.interval", "must be more than zero"));
        }
        let settings = PruneSettings { expired_for: self.expired_for.0, interval: self.interval.0 };
        Ok((!settings.expired_for.is_zero()).then_some(settings))
    }
}
