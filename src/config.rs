//! The settings of a server. Sources in increasing precedence: defaults, a TOML file, environment variables, flags.

mod admin;
mod cache;
mod error;
mod events;
mod feed;
mod human_duration;
mod json;
mod keys;
mod layers;
mod prune;
mod reload;
mod renamed;
mod schema;
mod secret_text;
mod server;
mod store;
mod store_url;
mod telemetry;
mod tls;
mod usage;
mod validator;

use crate::grpc::ValidatorAccess;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use admin::AdminConfig;
pub use cache::{CacheConfig, LocalCacheConfig, RedisCacheConfig};
pub use error::ConfigError;
pub use events::EventsConfig;
pub use feed::FeedConfig;
pub use human_duration::HumanDuration;
pub use keys::{ForeignConfig, KeysConfig};
pub use layers::{ENV_PREFIX, Loaded, Sources};
pub use prune::PruneConfig;
pub use reload::ReloadConfig;
pub use renamed::RenamedSetting;
pub use schema::json_schema;
pub use secret_text::SecretText;
pub use server::ServerConfig;
pub use store::{RedisStoreConfig, SqlStoreConfig, StoreConfig, StorePlace};
pub use store_url::StoreUrl;
pub use telemetry::TelemetryConfig;
pub use tls::TlsConfig;
pub use usage::UsageConfig;
pub use validator::ValidatorConfig;

pub use crate::server::ClientAuth;
pub use crate::telemetry::LogFormat;

/// All settings. `Debug` and `Serialize` redact secrets.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Listeners, limits and timeouts of the server.
    pub server: ServerConfig,
    /// Format of key strings.
    pub keys: KeysConfig,
    /// Storage backend.
    pub store: StoreConfig,
    /// Caches in front of the storage backend.
    pub cache: CacheConfig,
    /// Change feed, which delivers the changes of other replicas.
    pub feed: FeedConfig,
    /// Credentials of administrators.
    pub admin: AdminConfig,
    /// Access to the validation of keys.
    pub validator: ValidatorConfig,
    /// Audit trail.
    pub events: EventsConfig,
    /// Deletion of expired keys.
    pub prune: PruneConfig,
    /// Recording of the last use of keys.
    pub usage: UsageConfig,
    /// Reloading of files while the server runs.
    pub reload: ReloadConfig,
    /// Metrics, logs and traces.
    pub telemetry: TelemetryConfig,
}

impl Config {
    /// Checks the rules that the types don't express. [`Sources::load`] calls it.
    ///
    /// # Errors
    /// The first setting that breaks a rule. Files that the settings name, such as certificates, are read.
    pub fn check(&self) -> Result<(), ConfigError> {
        let listen = self.server.key_store_addresses()?;
        self.server.check()?;
        self.keys.format()?;
        self.store.place()?;
        self.cache.check()?;
        self.feed.check(&self.cache)?;
        self.events.check()?;
        self.prune.check()?;
        self.usage.check()?;
        self.reload.check()?;
        self.telemetry.check()?;
        let asks_clients = self.server.tls.asks_clients();
        self.validator.check(asks_clients)?;
        self.admin.check(&listen, asks_clients)?;
        if self.admin.insecure && self.validator.access == ValidatorAccess::Credential {
            let problem =
                "can't be \"credential\" while admin.insecure is true; remove one of the two settings";
            return Err(ConfigError::invalid("validator.access", problem));
        }
        Ok(())
    }
}
