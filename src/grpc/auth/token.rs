//! Admin tokens.

use std::fmt;

use data_encoding::HEXLOWER_PERMISSIVE;

use crate::domain::KeyHash;

/// Minimum length of a token: 20 random characters can't be guessed.
const MIN_TOKEN_CHARS: usize = 20;
const MAX_NAME_CHARS: usize = 64;

/// A named token. Only its SHA-256 digest is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminToken {
    pub(super) name: String,
    pub(super) digest: KeyHash,
}

/// A line that is not an admin token. The message never contains the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminTokenError {
    /// The colon is missing.
    #[error("not an admin token; expected `name:token` or `name:sha256:<64 hex digits>`")]
    NoName,
    /// The name is empty, too long, or has invalid characters.
    #[error(
        "invalid name of an admin token; use 1 to {MAX_NAME_CHARS} of a-z, A-Z, 0-9, `.`, `_`, `-` and `@`"
    )]
    BadName,
    /// The digest is malformed.
    #[error("invalid digest of an admin token; expected 64 hex digits, as `sha256sum` prints them")]
    BadDigest,
    /// The token is too short, or has characters that can't be sent.
    #[error("invalid admin token; use at least {MIN_TOKEN_CHARS} characters of visible ASCII")]
    BadToken,
}

impl AdminToken {
    /// Creates the token `token` with the name `name`.
    pub fn new(name: &str, token: &str) -> Result<Self, AdminTokenError> {
        if token.len() < MIN_TOKEN_CHARS || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(AdminTokenError::BadToken);
        }
        Ok(Self { name: check_name(name)?, digest: KeyHash::of(token) })
    }

    /// Parses `name:token` or `name:sha256:hex`.
    pub fn parse(line: &str) -> Result<Self, AdminTokenError> {
        let (name, token) = line.split_once(':').ok_or(AdminTokenError::NoName)?;
        let Some(digest) = token.strip_prefix("sha256:") else {
            return Self::new(name, token);
        };
        let digest = HEXLOWER_PERMISSIVE.decode(digest.as_bytes()).map_err(|_| AdminTokenError::BadDigest)?;
        let digest = digest.try_into().map_err(|_| AdminTokenError::BadDigest)?;
        Ok(Self { name: check_name(name)?, digest: KeyHash::from_bytes(digest) })
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminToken").field("name", &self.name).finish_non_exhaustive()
    }
}

fn check_name(name: &str) -> Result<String, AdminTokenError> {
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'@');
    if name.is_empty() || name.len() > MAX_NAME_CHARS || !name.bytes().all(is_known) {
        return Err(AdminTokenError::BadName);
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_line_is_rejected_with_its_problem() {
        let cases = [
            ("no-colon", AdminTokenError::NoName),
            (":a-token-of-enough-characters", AdminTokenError::BadName),
            ("bad name:a-token-of-enough-characters", AdminTokenError::BadName),
            ("alice:short", AdminTokenError::BadToken),
            ("alice:a token of enough characters", AdminTokenError::BadToken),
            ("alice:sha256:abc", AdminTokenError::BadDigest),
            ("alice:sha256:abcd", AdminTokenError::BadDigest),
        ];
        for (line, error) in cases {
            assert_eq!(AdminToken::parse(line), Err(error), "{line}");
        }
    }

    #[test]
    fn debug_shows_only_the_name() {
        let shown = format!("{:?}", AdminToken::parse("alice:a-token-of-enough-characters").unwrap());
        assert!(shown.contains("alice") && !shown.contains("a-token"), "{shown}");
    }
}
