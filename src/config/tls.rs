//! `[server.tls]`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::redis::{ClientCertificate, RedisFiles};
use crate::server::{ClientAuth, Tls, TlsFiles};

/// TLS.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file with the certificate of the server and the intermediate certificates up to its root. If set, every TCP
    /// connection is encrypted. Empty: no TLS.
    pub cert_file: PathBuf,
    /// PEM file with the private key of the certificate.
    pub key_file: PathBuf,
    /// PEM file with the root certificates of clients. Empty: clients are not asked for a certificate.
    pub client_ca_file: PathBuf,
    /// Effect of `server.tls.client_ca_file`: `required` (connections without a certificate are rejected) or
    /// `optional`.
    pub client_auth: ClientAuth,
}

impl TlsConfig {
    /// Returns the files. `None` if TLS is disabled.
    ///
    /// # Errors
    /// Only some of the files that belong together are set.
    pub(super) fn parse(&self) -> Result<Option<TlsFiles>, ConfigError> {
        require_pair(("server.tls.cert_file", &self.cert_file), ("server.tls.key_file", &self.key_file))?;
        let client_ca = self.asks_clients().then(|| self.client_ca_file.clone());
        if !self.cert_file.as_os_str().is_empty() {
            return Ok(Some(TlsFiles {
                certificate: self.cert_file.clone(),
                key: self.key_file.clone(),
                client_ca,
                client_auth: self.client_auth,
            }));
        }
        match client_ca {
            Some(_) => Err(ConfigError::invalid(
                "server.tls.client_ca_file",
                "has no effect without TLS; set server.tls.cert_file and server.tls.key_file too",
            )),
            None => Ok(None),
        }
    }

    /// Returns whether clients are asked for a certificate.
    pub(super) fn asks_clients(&self) -> bool {
        !self.client_ca_file.as_os_str().is_empty()
    }
}

/// Reads the files of TLS.
///
/// # Errors
/// A file can't be read or is not valid. The error names its setting.
pub(crate) fn load_tls(files: &TlsFiles) -> Result<Arc<Tls>, ConfigError> {
    files.load().map_err(|error| ConfigError::invalid(error.setting(), error))
}

type NamedFile<'a> = (&'static str, &'a Path);

/// Returns an error unless both settings name a file, or neither does.
pub(super) fn require_pair(certificate: NamedFile<'_>, key: NamedFile<'_>) -> Result<(), ConfigError> {
    match (certificate.1.as_os_str().is_empty(), key.1.as_os_str().is_empty()) {
        (true, false) => Err(one_is_missing(certificate.0, key.0)),
        (false, true) => Err(one_is_missing(key.0, certificate.0)),
        (true, true) | (false, false) => Ok(()),
    }
}

fn one_is_missing(missing: &'static str, given: &str) -> ConfigError {
    ConfigError::invalid(missing, format!("is empty, but {given} is set; set both, or neither"))
}

/// Returns the files of connections to Redis. Empty paths are unset.
pub(super) fn redis_files(ca: &Path, certificate: &Path, key: &Path, password: &Path) -> RedisFiles {
    let set = |path: &Path| (!path.as_os_str().is_empty()).then(|| path.to_owned());
    RedisFiles {
        ca: set(ca),
        client_certificate: set(certificate)
            .map(|certificate| ClientCertificate { certificate, key: key.to_owned() }),
        password: set(password),
    }
}
