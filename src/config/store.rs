//! `[store]`

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ConfigError, HumanDuration, StoreUrl};

const NAME: &str = "store.url";

/// Where keys are kept.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// `sqlite://FILE` or `memory:`.
    pub url: StoreUrl,
    /// Whether `serve` brings the tables up to date by itself.
    pub auto_migrate: bool,
    /// How long one call to the store may take.
    pub timeout: HumanDuration,
}

/// A store that this release speaks to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorePlace {
    /// This process's memory.
    Memory,
    /// A SQLite file.
    Sqlite(PathBuf),
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            url: StoreUrl::from("sqlite://keyvouch.db".to_owned()),
            auto_migrate: true,
            timeout: HumanDuration(Duration::from_secs(5)),
        }
    }
}

impl StoreConfig {
    /// The store in `url`. No error holds the URL: it can have a password.
    pub fn place(&self) -> Result<StorePlace, ConfigError> {
        if self.timeout.0.is_zero() {
            return Err(ConfigError::invalid("store.timeout", "must be more than zero"));
        }
        let Some((scheme, rest)) = self.url.expose().split_once(':') else {
            return Err(ConfigError::invalid(NAME, "is no URL: give sqlite://FILE or memory:"));
        };
        match scheme {
            "memory" if rest.is_empty() => Ok(StorePlace::Memory),
            "memory" => Err(ConfigError::invalid(NAME, "takes nothing after `memory:`")),
            "sqlite" => sqlite_file(rest),
            _ => Err(ConfigError::invalid(
                NAME,
                "names a store that this release does not have: use sqlite: or memory:",
            )),
        }
    }
}

fn sqlite_file(rest: &str) -> Result<StorePlace, ConfigError> {
    let file = rest.strip_prefix("//").unwrap_or(rest);
    if file.is_empty() {
        return Err(ConfigError::invalid(
            NAME,
            "has no file: give sqlite://FILE, for example sqlite://keyvouch.db",
        ));
    }
    if file == ":memory:" {
        return Err(ConfigError::invalid(NAME, "can't be SQLite in memory: use memory:"));
    }
    if file.contains(['?', '#', '%']) {
        return Err(ConfigError::invalid(
            NAME,
            "takes a plain file name after sqlite://, without ?, # and %",
        ));
    }
    Ok(StorePlace::Sqlite(file.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(url: &str) -> Result<StorePlace, ConfigError> {
        StoreConfig { url: StoreUrl::from(url.to_owned()), ..StoreConfig::default() }.place()
    }

    #[test]
    fn the_scheme_chooses_the_store() {
        assert_eq!(place("memory:").unwrap(), StorePlace::Memory);
        assert_eq!(place("sqlite://keyvouch.db").unwrap(), StorePlace::Sqlite("keyvouch.db".into()));
        assert_eq!(place("sqlite:///var/kv.db").unwrap(), StorePlace::Sqlite("/var/kv.db".into()));
        assert_eq!(place("sqlite:kv.db").unwrap(), StorePlace::Sqlite("kv.db".into()));
    }

    #[test]
    fn other_urls_are_refused_without_showing_them() {
        for url in [
            "",
            "kv.db",
            "sqlite://",
            "sqlite::memory:",
            "sqlite://a?mode=rw",
            "memory:x",
            "postgres://u:hunter2@h/d",
        ] {
            let error = place(url).unwrap_err().to_string();
            assert!(error.starts_with("store.url: ") && !error.contains("hunter2"), "{error}");
        }
    }
}
