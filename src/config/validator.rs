//! `[validator]`

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::grpc::ValidatorAccess;

/// Who may ask whether keys may be used.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ValidatorConfig {
    /// `open`: whoever reaches it; `credential`: who has one.
    pub access: ValidatorAccess,
    /// Names of client certificates that may, besides those of `admin.client_certificates`.
    pub client_certificates: Vec<String>,
}

impl ValidatorConfig {
    pub(super) fn check(&self, asks_clients: bool) -> Result<(), ConfigError> {
        check_names("validator.client_certificates", &self.client_certificates, asks_clients)
    }
}

/// Checks names of certificates that are to let their holders in.
pub(super) fn check_names(field: &str, names: &[String], asks_clients: bool) -> Result<(), ConfigError> {
    if names.iter().any(String::is_empty) {
        return Err(ConfigError::invalid(field, "has an empty name: give a DNS name or a URI"));
    }
    if !names.is_empty() && !asks_clients {
        let problem =
            "lets nobody in without server.tls.client_ca_file: clients are not asked for a certificate";
        return Err(ConfigError::invalid(field, problem));
    }
    Ok(())
}
