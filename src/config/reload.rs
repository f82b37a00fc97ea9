//! `[reload]`

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ConfigError, HumanDuration};

/// Reloading of files while the server runs.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ReloadConfig {
    /// Interval at which the files of `server.tls` and `admin.tokens_file` are checked for changes. Changed files apply
    /// to new connections and calls. Invalid files are logged, and the previous values stay in use. Files of Redis are
    /// read for each new connection instead. Must be more than 0.
    pub interval: HumanDuration,
}

impl Default for ReloadConfig {
    fn default() -> Self {
        Self { interval: HumanDuration(Duration::from_secs(10)) }
    }
}

impl ReloadConfig {
    /// Returns the interval at which files are checked for changes.
    pub(super) fn parse(&self) -> Result<Duration, ConfigError> {
        if self.interval.0.is_zero() {
            return Err(ConfigError::invalid("reload.interval", "must be more than zero"));
        }
        Ok(self.interval.0)
    }
}
