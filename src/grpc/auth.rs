//! Who may call `KeyStore`: bearers of an admin token.

use std::fmt;
use std::sync::Arc;

use data_encoding::HEXLOWER_PERMISSIVE;
use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::pb::ErrorReason;
use super::{RequestId, status};
use crate::domain::KeyHash;
use crate::service::Caller;

/// The fewest characters of a token: 20 of a random token's make it unguessable.
const MIN_TOKEN_CHARS: usize = 20;
const MAX_NAME_CHARS: usize = 64;

const NEEDED: &str = "this call needs the metadata `authorization: Bearer <admin token>`";
const UNKNOWN: &str = "the credential is not one that this server knows";

/// A named token, of which only the SHA-256 digest is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminToken {
    name: String,
    digest: KeyHash,
}

/// Why a line is no admin token. The text never holds the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminTokenError {
    /// There is no colon.
    #[error("an admin token is written `name:token` or `name:sha256:<64 hex digits>`")]
    NoName,
    /// The name is empty, long or odd.
    #[error("the name of an admin token has 1 to {MAX_NAME_CHARS} of a-z, A-Z, 0-9, `.`, `_`, `-` and `@`")]
    BadName,
    /// The digest is none.
    #[error("the digest of an admin token has 64 hex digits, as `sha256sum` prints them")]
    BadDigest,
    /// The token could be guessed or not be sent.
    #[error("an admin token has at least {MIN_TOKEN_CHARS} characters of visible ASCII")]
    BadToken,
}

impl AdminToken {
    /// The token `token` under the name `name`.
    pub fn new(name: &str, token: &str) -> Result<Self, AdminTokenError> {
        if token.len() < MIN_TOKEN_CHARS || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(AdminTokenError::BadToken);
        }
        Ok(Self { name: check_name(name)?, digest: KeyHash::of(token) })
    }

    /// Reads `name:token` or `name:sha256:hex`.
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

/// Lets calls with a credential through and tells the handler who it is.
#[derive(Clone, Debug)]
pub struct AdminAuth {
    door: Door,
}

#[derive(Clone, Debug)]
enum Door {
    Tokens(Arc<[AdminToken]>),
    Open,
}

impl AdminAuth {
    /// Only bearers of one of `tokens`.
    #[must_use]
    pub fn with_tokens(tokens: Vec<AdminToken>) -> Self {
        Self { door: Door::Tokens(tokens.into()) }
    }

    /// Everyone, without a credential: for loopback and Unix sockets alone.
    #[must_use]
    pub fn open() -> Self {
        Self { door: Door::Open }
    }

    /// Who makes the call `request_id` with `metadata`.
    pub(super) fn authenticate(&self, metadata: &MetadataMap, request_id: &str) -> Result<Caller, Status> {
        let Door::Tokens(tokens) = &self.door else {
            return Ok(Caller::anonymous(request_id));
        };
        let mut headers = metadata.get_all("authorization").iter();
        let Some(header) = headers.next() else {
            return Err(status::unauthenticated(ErrorReason::CredentialRequired, NEEDED));
        };
        if headers.next().is_some() {
            // Two answers to the question who is calling are none.
            return Err(status::unauthenticated(ErrorReason::CredentialInvalid, "give `authorization` once"));
        }
        let Some(token) = header.to_str().ok().and_then(bearer_token) else {
            return Err(status::unauthenticated(ErrorReason::CredentialInvalid, NEEDED));
        };
        let digest = KeyHash::of(token);
        // All are compared, so the time says nothing of which one it was.
        let known = tokens.iter().fold(None, |known, token| {
            if token.digest.is_same_in_constant_time(&digest) { Some(token) } else { known }
        });
        match known {
            Some(token) => Ok(Caller::admin(&token.name, request_id)),
            None => Err(status::unauthenticated(ErrorReason::CredentialInvalid, UNKNOWN)),
        }
    }
}

impl Interceptor for AdminAuth {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let request_id = request.extensions().get().map_or("", RequestId::as_str);
        match self.authenticate(request.metadata(), request_id) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Ok(request)
            }
            Err(refusal) => {
                tracing::warn!(reason = refusal.message(), "a call to KeyStore was refused");
                Err(refusal)
            }
        }
    }
}

/// The token of a header `Bearer <token>`, the scheme in any case (RFC 9110, section 11.1; RFC 6750, section 2.1).
fn bearer_token(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim_matches(' ');
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "a-token-of-enough-characters";

    fn auth() -> AdminAuth {
        let digest = data_encoding::HEXUPPER.encode(KeyHash::of("another-token-of-enough").as_bytes());
        AdminAuth::with_tokens(vec![
            AdminToken::parse(&format!("alice:{TOKEN}")).unwrap(),
            AdminToken::parse(&format!("bob:sha256:{digest}")).unwrap(),
        ])
    }

    fn actor(headers: &[&str]) -> Result<String, Status> {
        let mut metadata = MetadataMap::new();
        for header in headers {
            metadata.append("authorization", header.parse().unwrap());
        }
        let caller = auth().authenticate(&metadata, "r-1")?;
        Ok(caller.context(crate::domain::Timestamp::MIN).actor)
    }

    #[test]
    fn each_token_has_its_name() {
        assert_eq!(actor(&[&format!("Bearer {TOKEN}")]).unwrap(), "token:alice");
        assert_eq!(actor(&["bEARER  another-token-of-enough "]).unwrap(), "token:bob");
    }

    #[test]
    fn everything_else_is_refused() {
        let good = format!("Bearer {TOKEN}");
        let refused: [&[&str]; 9] = [
            &[],
            &[""],
            &["Bearer"],
            &["Bearer "],
            &[TOKEN],
            &["Basic YTpi"],
            &["Bearer\ta-token-of-enough-characters"],
            &["Bearer A-TOKEN-OF-ENOUGH-CHARACTERS"],
            &[&good, &good],
        ];
        for headers in refused {
            assert_eq!(actor(headers).unwrap_err().code(), tonic::Code::Unauthenticated, "{headers:?}");
        }
    }

    #[test]
    fn lines_that_are_no_token_say_what_is_wrong() {
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
    fn debug_shows_the_name_alone() {
        let shown = format!("{:?}", auth());
        assert!(shown.contains("alice") && !shown.contains(TOKEN), "{shown}");
    }
}
