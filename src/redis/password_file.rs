//! A password that changes while the server runs: it is read from its file again for each connection.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use fred::error::{Error, ErrorKind as FredKind};
use fred::types::config::{CredentialProvider, Server};

use crate::repository::{ErrorKind, RepositoryError, Result};

/// The file of a user's password.
#[derive(Debug)]
pub(super) struct PasswordFile {
    user: Option<String>,
    path: PathBuf,
}

impl PasswordFile {
    /// # Errors
    /// [`ErrorKind::Refused`] if the file can't be read now.
    pub(super) fn open(user: Option<String>, path: &Path) -> Result<Self> {
        let file = Self { user, path: path.to_owned() };
        file.read().map_err(|error| RepositoryError::new(ErrorKind::Refused, error))?;
        Ok(file)
    }

    /// The password, without the end of its line.
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
        // A small local file, and rarely.
        let password = self.read().map_err(|error| {
            Error::new(FredKind::Auth, format!("the file of the password can't be read: {error}"))
        })?;
        Ok((self.user.clone(), Some(password)))
    }
}
