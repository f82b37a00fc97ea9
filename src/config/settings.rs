//! The parsed settings.

use std::time::Duration;

use super::admin::AdminSettings;
use super::cache::CacheSettings;
use super::prune::PruneSettings;
use super::server::ServerSettings;
use super::store::StoreSettings;
use super::telemetry::TelemetrySettings;
use super::tls::load_tls;
use super::{Config, ConfigError};
use crate::domain::KeyFormat;
use crate::grpc::{CertificateNames, ValidatorAccess};

/// Parsed settings: [`Config`] in the form in which a server uses it. All rules were checked. The content of files that
/// the settings name was not. `Debug` redacts secrets.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(crate) server: ServerSettings,
    /// Format of key strings.
    pub(crate) keys: KeyFormat,
    pub(crate) store: StoreSettings,
    pub(crate) cache: CacheSettings,
    pub(crate) admin: AdminSettings,
    /// Names of client certificates of administrators and of callers of `Validator`.
    pub(crate) certificates: CertificateNames,
    pub(crate) validator_access: ValidatorAccess,
    /// Time after which events are deleted. `None` if they are kept forever.
    pub(crate) event_retention: Option<Duration>,
    /// Deletion of expired keys. `None` if they are never deleted.
    pub(crate) prune: Option<PruneSettings>,
    /// Interval at which last uses are written.
    pub(crate) usage_flush_interval: Duration,
    /// Interval at which files are checked for changes.
    pub(crate) reload_interval: Duration,
    pub(crate) telemetry: TelemetrySettings,
}

impl Settings {
    /// Reads the certificates and admin tokens that the settings name.
    ///
    /// # Errors
    /// A file can't be read or is not valid. The error names its setting.
    pub fn check_files(&self) -> Result<(), ConfigError> {
        if let Some(files) = &self.server.tls {
            load_tls(files)?;
        }
        match &self.admin {
            AdminSettings::Configured(tokens) => tokens.load().map(drop),
            AdminSettings::Insecure | AdminSettings::FirstStart => Ok(()),
        }
    }
}

impl Config {
    /// Parses the settings, without reading the files that they name. [`Sources::load`](super::Sources::load) calls it.
    ///
    /// # Errors
    /// The first setting that breaks a rule.
    pub fn parse(&self) -> Result<Settings, ConfigError> {
        let server = self.server.parse()?;
        let keys = self.keys.parse()?;
        let store = self.store.parse()?;
        let cache = self.cache.parse(&self.feed)?;
        let event_retention = self.events.parse()?;
        let prune = self.prune.parse()?;
        let usage_flush_interval = self.usage.parse()?;
        let reload_interval = self.reload.parse()?;
        let telemetry = self.telemetry.parse()?;
        let asks_clients = self.server.tls.asks_clients();
        self.validator.check(asks_clients)?;
        let admin = self.admin.parse(&server.listen, asks_clients)?;
        if self.admin.insecure && self.validator.access == ValidatorAccess::Credential {
            let problem =
                "can't be \"credential\" while admin.insecure is true; remove one of the two settings";
            return Err(ConfigError::invalid("validator.access", problem));
        }
        let certificates = CertificateNames {
            admin: self.admin.client_certificates.clone(),
            validator: self.validator.client_certificates.clone(),
        };
        Ok(Settings {
            server,
            keys,
            store,
            cache,
            admin,
            certificates,
            validator_access: self.validator.access,
            event_retention,
            prune,
            usage_flush_interval,
            reload_interval,
            telemetry,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Role;

    #[test]
    fn every_address_has_its_services_and_its_setting() {
        let listen = |config: &Config| {
            let listen = config.parse().unwrap().server.listen.into_iter();
            listen.map(|it| (it.address.to_string(), it.role, it.setting)).collect::<Vec<_>>()
        };
        let mut config = Config::default();
        config.server.listen = vec!["127.0.0.1:1".into(), "unix:/run/kv.sock".into()];
        assert_eq!(
            listen(&config),
            [
                ("127.0.0.1:1".to_owned(), Role::Both, "server.listen"),
                ("unix:/run/kv.sock".to_owned(), Role::Both, "server.listen"),
            ]
        );
        config.server.listen.pop();
        config.server.admin_listen = vec!["127.0.0.1:2".into()];
        assert_eq!(
            listen(&config),
            [
                ("127.0.0.1:1".to_owned(), Role::Validator, "server.listen"),
                ("127.0.0.1:2".to_owned(), Role::KeyStore, "server.admin_listen"),
            ]
        );
    }

    #[test]
    fn files_are_read_by_their_own_check_alone() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let mut config = Config::default();
        config.admin.tokens_file.clone_from(&missing);
        let error = config.parse().unwrap().check_files().unwrap_err();
        assert_eq!(error.setting(), Some("admin.tokens_file"));
        config.server.tls.cert_file.clone_from(&missing);
        config.server.tls.key_file = missing;
        let error = config.parse().unwrap().check_files().unwrap_err();
        assert_eq!(error.setting(), Some("server.tls.cert_file"));
    }

    #[test]
    fn zero_disables_what_it_can_disable() {
        let mut config = Config::default();
        let settings = config.parse().unwrap();
        assert!(settings.event_retention.is_some() && settings.prune.is_none());
        assert!(settings.server.options.idle_timeout.is_some());
        assert!(settings.server.options.max_connection_age.is_some());
        let zero = crate::config::HumanDuration(Duration::ZERO);
        config.events.retention = zero;
        config.server.idle_timeout = zero;
        config.server.max_connection_age = zero;
        config.prune.expired_for = crate::config::HumanDuration(Duration::from_secs(7));
        let settings = config.parse().unwrap();
        assert!(settings.event_retention.is_none());
        assert_eq!(settings.prune.unwrap().expired_for, Duration::from_secs(7));
        assert!(settings.server.options.idle_timeout.is_none());
        assert!(settings.server.options.max_connection_age.is_none());
    }
}
