//! `[admin]`

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::validator::check_names;
use super::{ConfigError, SecretText};
use crate::grpc::AdminToken;
use crate::server::ListenAddr;

/// Credentials of administrators.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// File with one `name:token` or `name:sha256:<64 hex digits>` per line; `#` begins a comment. The names appear in
    /// the audit trail. Empty: no file.
    pub tokens_file: PathBuf,
    /// List of tokens in the same form. Meant for the environment: `KEYVOUCH__ADMIN__TOKENS=ops:…,ci:…`.
    pub tokens: Vec<SecretText>,
    /// Names (DNS names or URIs of `subjectAltName`) of client certificates whose holders are administrators.
    pub client_certificates: Vec<String>,
    /// Whether `KeyStore` can be called without a credential. Rejected unless all addresses of `KeyStore` are loopback
    /// or Unix sockets. If other machines can reach `Validator`, its callers need a key with a `keyvouch.*` scope for
    /// `WatchChanges`, and to ask for less staleness than `cache.min_staleness`.
    pub insecure: bool,
}

impl AdminConfig {
    /// Returns whether no credential is configured, so that the first start may create a token.
    #[must_use]
    pub fn is_unset(&self) -> bool {
        !self.insecure && !self.has_credentials()
    }

    fn has_credentials(&self) -> bool {
        !(self.tokens.is_empty()
            && self.tokens_file.as_os_str().is_empty()
            && self.client_certificates.is_empty())
    }

    /// Returns the tokens of both sources.
    ///
    /// # Errors
    /// A token is malformed, or the file can't be read or has no token. The error never contains a token.
    pub fn load_tokens(&self) -> Result<Vec<AdminToken>, ConfigError> {
        let mut tokens = Vec::new();
        for (index, token) in self.tokens.iter().enumerate() {
            let parsed = AdminToken::parse(token.expose());
            tokens
                .push(parsed.map_err(|error| ConfigError::invalid(format!("admin.tokens[{index}]"), error))?);
        }
        if !self.tokens_file.as_os_str().is_empty() {
            let from_file = read_tokens(&self.tokens_file)?;
            if from_file.is_empty() {
                let problem =
                    format!("{} has no token; write one `name:token` per line", self.tokens_file.display());
                return Err(ConfigError::invalid("admin.tokens_file", problem));
            }
            tokens.extend(from_file);
        }
        Ok(tokens)
    }

    pub(super) fn check(
        &self,
        listen: &[(ListenAddr, &'static str)],
        asks_clients: bool,
    ) -> Result<(), ConfigError> {
        check_names("admin.client_certificates", &self.client_certificates, asks_clients)?;
        if self.insecure && self.has_credentials() {
            let problem = "can't be true while credentials are configured; remove one of the two settings";
            return Err(ConfigError::invalid("admin.insecure", problem));
        }
        let Some((address, setting)) = listen.iter().find(|(address, _)| !address.is_local()) else {
            return Ok(());
        };
        if self.is_unset() {
            let problem = format!(
                "{address} can be reached from other machines, so KeyStore needs a credential; set \
                 admin.tokens_file to a file with a line `name:token`, or listen only on loopback addresses or Unix sockets"
            );
            return Err(ConfigError::invalid(*setting, problem));
        }
        if self.insecure {
            let problem = format!(
                "would let every client that reaches {address} administer keys; set admin.tokens_file, or listen only on \
                 loopback addresses or Unix sockets"
            );
            return Err(ConfigError::invalid("admin.insecure", problem));
        }
        Ok(())
    }
}

fn read_tokens(path: &Path) -> Result<Vec<AdminToken>, ConfigError> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new).map_err(|error| {
        ConfigError::invalid("admin.tokens_file", format!("can't read {}: {error}", path.display()))
    })?;
    let mut tokens = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let token = AdminToken::parse(line).map_err(|error| {
            let problem = format!("{}, line {}: {error}", path.display(), index + 1);
            ConfigError::invalid("admin.tokens_file", problem)
        })?;
        tokens.push(token);
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_from_both_sources_and_comments_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        std::fs::write(&path, "# people\n\nalice:a-token-of-enough-characters\n").unwrap();
        let config = AdminConfig {
            tokens_file: path.clone(),
            tokens: vec![SecretText::from("ci:b-token-of-enough-characters".to_owned())],
            ..AdminConfig::default()
        };
        assert_eq!(config.load_tokens().unwrap().len(), 2);

        std::fs::write(&path, "# nobody\n").unwrap();
        assert!(config.load_tokens().unwrap_err().to_string().contains("has no token"));
    }

    #[test]
    fn a_faulty_line_is_named_by_number_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        std::fs::write(&path, "alice:a-token-of-enough-characters\nhunter2\n").unwrap();
        let config = AdminConfig { tokens_file: path, ..AdminConfig::default() };
        let error = config.load_tokens().unwrap_err().to_string();
        assert!(error.contains("line 2") && !error.contains("hunter2"), "{error}");
    }
}
