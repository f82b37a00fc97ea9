//! `[validator]`

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::grpc::ValidatorAccess;

/// Access to the validation of keys.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ValidatorConfig {
    /// Clients that may validate keys: `open` for every client, `credential` for those with a credential.
    pub access: ValidatorAccess,
    /// Client certificates of callers that may validate keys, in addition to `admin.client_certificates`: DNS names or
    /// URIs in `subjectAltName`. Needs `server.tls.client_ca_file`.
    pub client_certificates: Vec<String>,
}

impl ValidatorConfig {
    pub(super) fn check(&self, asks_clients: bool) -> Result<(), ConfigError> {
        check_names("validator.client_certificates", &self.client_certificates, asks_clients)
    }
}

/// Checks the configured names of client certificates.
pub(super) fn check_names(field: &str, names: &[String], asks_clients: bool) -> Result<(), ConfigError> {
    if names.iter().any(String::is_empty) {
        return Err(ConfigError::invalid(field, "has an empty name; use a DNS name or a URI"));
    }
    if !names.is_empty() && !asks_clients {
        let problem = "has no effect unless server.tls.client_ca_file is set: without it, clients are not asked for a \
                       certificate";
        return Err(ConfigError::invalid(field, problem));
    }
    Ok(())
}
