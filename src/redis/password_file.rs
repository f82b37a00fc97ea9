//! A password that can change while the process runs. The file is read again for each new connection.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use fred::error::{Error, ErrorKind};
use fred::types::config::{CredentialProvider, Server};

use super::error::{InvalidSettings, Result};

/// The file with the password of a user.
#[derive(Debug)]
pub(super) struct PasswordFile {
    user: Option<String>,
    path: PathBuf,
}

impl PasswordFile {
    /// Opens the file and checks that it can be read.
    ///
    /// # Errors
    /// The file can't be read.
    pub(super) fn open(user: Option<String>, path: &Path) -> Result<Self> {
        let file = Self { user, path: path.to_owned() };
        file.read().map_err(InvalidSettings::new)?;
        Ok(file)
    }

    /// Returns the password without trailing line breaks.
    fn read(&self) -> std::io::Result<String> {
        let text = std::fs::read_to_string(&self.path)?;
        Ok(text.trim_end_matches(['\r', '\n']).to_owned())
    }
}

#[async_trait]
impl CredentialProvider for PasswordFile {
    async fn fetch(
        &self,
        _: Option<&Server>,
    ) -> std::result::Result<(Option<String>, Option<String>), Error> {
        // Blocking is acceptable: the file is small and local, and connections are rare.
        let password = self
            .read()
            .map_err(|error| Error::new(ErrorKind::Auth, format!("can't read the password file: {error}")))?;
        Ok((self.user.clone(), Some(password)))
    }
}
