//! `[server.tls]`

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ConfigError, HumanDuration};
use crate::server::{ClientAuth, TlsFiles};

/// Encrypted connections.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// The server's certificate and those that lead to its root, as PEM. Empty: connections are not encrypted.
    pub cert_file: PathBuf,
    /// The private key of the certificate, as PEM.
    pub key_file: PathBuf,
    /// The roots of clients' certificates, as PEM. Empty: clients are not asked for one.
    pub client_ca_file: PathBuf,
    /// Whether clients need a certificate, where there are roots for it.
    pub client_auth: ClientAuth,
    /// How often the files are looked at: new ones count for new connections.
    pub reload_interval: HumanDuration,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            cert_file: PathBuf::new(),
            key_file: PathBuf::new(),
            client_ca_file: PathBuf::new(),
            client_auth: ClientAuth::default(),
            reload_interval: HumanDuration(Duration::from_secs(10)),
        }
    }
}

impl TlsConfig {
    /// The files; `None` if connections are not encrypted.
    pub fn files(&self) -> Result<Option<TlsFiles>, ConfigError> {
        let (has_certificate, has_key) =
            (!self.cert_file.as_os_str().is_empty(), !self.key_file.as_os_str().is_empty());
        let client_ca = (!self.client_ca_file.as_os_str().is_empty()).then(|| self.client_ca_file.clone());
        match (has_certificate, has_key) {
            (true, true) => Ok(Some(TlsFiles {
                certificate: self.cert_file.clone(),
                key: self.key_file.clone(),
                client_ca,
                client_auth: self.client_auth,
            })),
            (true, false) => Err(ConfigError::invalid(
                "server.tls.key_file",
                "is empty, but server.tls.cert_file is not: give both for TLS, or neither",
            )),
            (false, true) => Err(ConfigError::invalid(
                "server.tls.cert_file",
                "is empty, but server.tls.key_file is not: give both for TLS, or neither",
            )),
            (false, false) if client_ca.is_some() => Err(ConfigError::invalid(
                "server.tls.client_ca_file",
                "needs TLS: give server.tls.cert_file and server.tls.key_file too",
            )),
            (false, false) => Ok(None),
        }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.reload_interval.0.is_zero() {
            return Err(ConfigError::invalid("server.tls.reload_interval", "must be more than zero"));
        }
        let Some(files) = self.files()? else {
            return Ok(());
        };
        match files.load() {
            Ok(_) => Ok(()),
            Err(error) => Err(ConfigError::invalid(error.setting(), error)),
        }
    }

    /// Whether clients are asked for a certificate.
    pub(super) fn asks_clients(&self) -> bool {
        !self.client_ca_file.as_os_str().is_empty()
    }
}
