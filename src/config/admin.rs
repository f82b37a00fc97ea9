//! `[admin]`

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::server::ListenSettings;
use super::validator::check_names;
use super::{ConfigError, SecretText, open_regular_file};
use crate::grpc::AdminToken;
use crate::server::Role;

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
    /// or Unix sockets. If other machines can reach `Validator`, its clients need a key for two kinds of calls. `WatchChanges`
    /// needs the scope `keyvouch.read` or `keyvouch.admin`. Less staleness than `cache.min_staleness` needs
    /// `keyvouch.validate`, `keyvouch.read` or `keyvouch.admin`.
    pub insecure: bool,
}

/// The parsed settings of `[admin]`, except for names of certificates.
#[derive(Clone, Debug)]
pub(crate) enum AdminSettings {
    /// No credential is required.
    Insecure,
    /// No credential is configured, so that the first start may create a token.
    FirstStart,
    /// A credential is required: one of these tokens, or a certificate.
    Configured(AdminTokens),
}

/// The configured tokens of administrators.
#[derive(Clone, Debug)]
pub(crate) struct AdminTokens {
    listed: Vec<AdminToken>,
    /// The file with more tokens.
    pub(crate) file: Option<PathBuf>,
}

impl AdminTokens {
    /// Returns the tokens of a file alone.
    #[cfg(test)]
    pub(crate) fn of_file(file: &Path) -> Self {
        Self { listed: Vec::new(), file: Some(file.to_owned()) }
    }

    /// Reads the file, and returns the tokens of both sources.
    ///
    /// # Errors
    /// The file can't be read, has a malformed line or no token. The error never contains a token.
    pub(crate) fn load(&self) -> Result<Vec<AdminToken>, ConfigError> {
        let mut tokens = self.listed.clone();
        if let Some(file) = &self.file {
            let from_file = read_tokens(file)?;
            if from_file.is_empty() {
                let problem = format!("{} has no token; write one `name:token` per line", file.display());
                return Err(ConfigError::invalid("admin.tokens_file", problem));
            }
            tokens.extend(from_file);
        }
        Ok(tokens)
    }

    /// Returns whether the file has a token in plain text, instead of a digest. `false` if it can't be read.
    pub(super) fn has_plain_token(&self) -> bool {
        let text = self.file.as_deref().and_then(|file| read(file).ok());
        text.is_some_and(|text| entries(&text).any(|(_, line)| !line.contains(":sha256:")))
    }
}

impl AdminConfig {
    /// Parses the settings. `listen` has the addresses of the server. `asks_clients` is whether clients are asked for a
    /// certificate.
    ///
    /// # Errors
    /// A setting breaks a rule, a token is malformed, or other machines could administer keys without a credential. The
    /// error never contains a token.
    pub(super) fn parse(
        &self,
        listen: &[ListenSettings],
        asks_clients: bool,
    ) -> Result<AdminSettings, ConfigError> {
        check_names("admin.client_certificates", &self.client_certificates, asks_clients)?;
        let settings = self.settings()?;
        if self.insecure && !matches!(settings, AdminSettings::Insecure) {
            let problem = "can't be true while credentials are configured; remove one of the two settings";
            return Err(ConfigError::invalid("admin.insecure", problem));
        }
        let mut of_key_store = listen.iter().filter(|listen| listen.role != Role::Validator);
        let Some(ListenSettings { address, setting, .. }) =
            of_key_store.find(|listen| !listen.address.is_local())
        else {
            return Ok(settings);
        };
        match settings {
            AdminSettings::Configured(_) => Ok(settings),
            AdminSettings::FirstStart => {
                let problem = format!(
                    "{address} can be reached from other machines, so KeyStore needs a credential; set \
                     admin.tokens_file to a file with a line `name:token`, or listen only on loopback addresses or Unix sockets"
                );
                Err(ConfigError::invalid(*setting, problem))
            }
            AdminSettings::Insecure => {
                let problem = format!(
                    "would let every client that reaches {address} administer keys; set admin.tokens_file, or listen only on \
                     loopback addresses or Unix sockets"
                );
                Err(ConfigError::invalid("admin.insecure", problem))
            }
        }
    }

    /// Returns the credentials. If there are none, returns what is allowed without.
    fn settings(&self) -> Result<AdminSettings, ConfigError> {
        let file = (!self.tokens_file.as_os_str().is_empty()).then(|| self.tokens_file.clone());
        let listed = self.tokens.iter().enumerate().map(|(index, token)| {
            let parsed = AdminToken::parse(token.expose());
            parsed.map_err(|error| ConfigError::invalid(format!("admin.tokens[{index}]"), error))
        });
        let listed: Vec<_> = listed.collect::<Result<_, _>>()?;
        if !(listed.is_empty() && file.is_none() && self.client_certificates.is_empty()) {
            return Ok(AdminSettings::Configured(AdminTokens { listed, file }));
        }
        Ok(if self.insecure { AdminSettings::Insecure } else { AdminSettings::FirstStart })
    }
}

fn read_tokens(path: &Path) -> Result<Vec<AdminToken>, ConfigError> {
    let text = read(path).map_err(|error| {
        ConfigError::invalid("admin.tokens_file", format!("can't read {}: {error}", path.display()))
    })?;
    let tokens = entries(&text).map(|(number, line)| {
        AdminToken::parse(line).map_err(|error| {
            let problem = format!("{}, line {number}: {error}", path.display());
            ConfigError::invalid("admin.tokens_file", problem)
        })
    });
    tokens.collect()
}

fn read(path: &Path) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    open_regular_file(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// Returns the lines that are neither empty nor comments, with their numbers. Some editors write a byte order mark at
/// the beginning of a file, which is skipped.
fn entries(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = (1..).zip(text.lines().map(str::trim));
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the tokens of `config` for a server that only this machine can reach.
    fn load(config: &AdminConfig) -> Result<Vec<AdminToken>, ConfigError> {
        match config.parse(&[], false)? {
            AdminSettings::Configured(tokens) => tokens.load(),
            settings => panic!("{settings:?}"),
        }
    }

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
        assert_eq!(load(&config).unwrap().len(), 2);

        for with_mark in [
            "\u{feff}# people\r\nalice:a-token-of-enough-characters\r\n",
            "\u{feff}alice:a-token-of-enough-characters",
        ] {
            std::fs::write(&path, with_mark).unwrap();
            assert_eq!(load(&config).unwrap().len(), 2);
        }

        std::fs::write(&path, "# nobody\n").unwrap();
        let error = load(&config).unwrap_err();
        assert_eq!(error.setting(), Some("admin.tokens_file"));
        assert!(error.to_string().contains("has no token"));
    }

    #[test]
    fn a_faulty_line_is_named_by_number_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        std::fs::write(&path, "alice:a-token-of-enough-characters\nhunter2\n").unwrap();
        let config = AdminConfig { tokens_file: path, ..AdminConfig::default() };
        let error = load(&config).unwrap_err().to_string();
        assert!(error.contains("line 2") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_faulty_token_is_named_by_its_index_and_never_shown() {
        let tokens = ["ops:a-token-of-enough-characters", "hunter2"];
        let tokens = tokens.map(|token| SecretText::from(token.to_owned())).to_vec();
        let error = load(&AdminConfig { tokens, ..AdminConfig::default() }).unwrap_err();
        assert_eq!(error.setting(), Some("admin.tokens[1]"));
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }

    #[test]
    fn what_is_not_configured_is_open_or_created_at_the_first_start() {
        let parse = |insecure| AdminConfig { insecure, ..AdminConfig::default() }.parse(&[], false).unwrap();
        assert!(matches!(parse(true), AdminSettings::Insecure));
        assert!(matches!(parse(false), AdminSettings::FirstStart));
    }
}
