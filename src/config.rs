//! The settings of a server. Sources in increasing precedence: defaults, a file, environment variables, flags.
//!
//! [`Config`] has the settings as they are written. It is parsed once, into [`Settings`].

mod admin;
mod cache;
mod error;
mod events;
mod feed;
mod flags;
mod human_duration;
mod json;
mod keys;
mod layers;
mod prune;
mod regular_file;
mod reload;
mod renamed;
mod schema;
mod secret_text;
mod server;
mod settings;
mod store;
mod store_url;
mod telemetry;
mod tls;
mod usage;
mod validator;
mod warnings;

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
pub use settings::Settings;
pub use store::{RedisStoreConfig, SqlStoreConfig, StoreConfig};
pub use store_url::StoreUrl;
pub use telemetry::TelemetryConfig;
pub use tls::TlsConfig;
pub use usage::UsageConfig;
pub use validator::ValidatorConfig;

pub(crate) use admin::{AdminSettings, AdminTokens};
pub(crate) use regular_file::open_regular_file;
pub(crate) use server::ListenSettings;
pub(crate) use store::{Listening, SqlPlace, StoreBackend, StoreSettings};
pub(crate) use tls::load_tls;

pub use crate::server::ClientAuth;
pub use crate::telemetry::{CollectorUrl, LogFormat};

/// All settings, as written. [`parse`](Self::parse) checks and converts them. `Debug` and `Serialize` redact secrets.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(description = "The settings of a Keyvouch server.")]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Listeners, limits and timeouts of the server.
    pub server: ServerConfig,
    /// Format of key strings.
    pub keys: KeysConfig,
    /// Backend.
    pub store: StoreConfig,
    /// Caches in front of the backend.
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
