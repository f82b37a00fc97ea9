//! `[validator]`

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::grpc::ValidatorAccess;

/// Access to the validation of keys.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ValidatorConfig {
    /// Access to `Validate`: `open` (no credential needed) or `credential` (an admin token, a key with the scope
    /// `keyvouch.validate` or `keyvouch.admin`, or a client certificate that is named in
    /// `validator.client_certificates` or `admin.client_certificates`).
    pub access: ValidatorAccess,
    /// Names of client certificates that may validate, in addition to those of administrators.
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
