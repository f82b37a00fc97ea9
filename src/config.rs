//! The settings of a server: defaults that work, a TOML file, environment variables and flags, later ones over earlier.

mod admin;
mod cache;
mod error;
mod events;
mod feed;
mod human_duration;
mod keys;
mod layers;
mod prune;
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
pub use layers::{ENV_PREFIX, Sources};
pub use prune::PruneConfig;
pub use schema::json_schema;
pub use secret_text::SecretText;
pub use server::ServerConfig;
pub use store::{StoreConfig, StorePlace};
pub use store_url::StoreUrl;
pub use telemetry::TelemetryConfig;
pub use tls::TlsConfig;
pub use usage::UsageConfig;
pub use validator::ValidatorConfig;

/// All settings. `Debug` and `Serialize` show no secret.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where and how calls are served.
    pub server: ServerConfig,
    /// What key strings look like.
    pub keys: KeysConfig,
    /// Where keys are kept.
    pub store: StoreConfig,
    /// The caches in front of it.
    pub cache: CacheConfig,
    /// How the changes of other replicas are followed.
    pub feed: FeedConfig,
    /// Who may administer keys.
    pub admin: AdminConfig,
    /// Who may ask whether keys may be used.
    pub validator: ValidatorConfig,
    /// The audit trail.
    pub events: EventsConfig,
    /// Deleting keys that expired long ago.
    pub prune: PruneConfig,
    /// How the last use of keys is recorded.
    pub usage: UsageConfig,
    /// What operators see.
    pub telemetry: TelemetryConfig,
}

impl Config {
    /// Checks what the types can't say; [`Sources::load`] has done so already.
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
        self.telemetry.check()?;
        let asks_clients = self.server.tls.asks_clients();
        self.validator.check(asks_clients)?;
        self.admin.check(&listen, asks_clients)?;
        if self.admin.insecure && self.validator.access == ValidatorAccess::Credential {
            let problem = "asks for credentials, but admin.insecure says that there are none: take away one or the other";
            return Err(ConfigError::invalid("validator.access", problem));
        }
        Ok(())
    }
}
