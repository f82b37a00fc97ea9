//! Authenticates callers by their credential: an admin token, a key of this server, or a client certificate.

mod guard;
mod recheck;
mod token;

use std::error::Error as _;
use std::sync::Arc;

use http::{Extensions, HeaderMap};
use tokio::sync::{Semaphore, watch};
use tonic::{Request, Status};

pub use self::guard::{Guard, ValidatorAccess};
pub(crate) use self::recheck::Recheck;
pub use self::token::{AdminToken, AdminTokenError};
use super::pb::ErrorReason;
use super::{CertificateName, Peer, RequestId, status};
use crate::domain::{Clock as _, KeyHash, ScopeMatch, ScopeSet, SystemClock, Verdict};
use crate::service::{Actor, Caller, Lookups, Permission, ValidatorService};

const NEEDED: &str = "this call needs a credential: the metadata `authorization: Bearer <admin token or key>`, or a client certificate that the server accepts";
const UNKNOWN: &str = "invalid credential: unknown, revoked or expired";

/// Maximum number of concurrent lookups of credentials. Further calls are rejected, so that random credentials can't
/// use up the lookups of validations.
const MAX_LOOKUPS: usize = 32;

/// The credentials that the server accepts.
#[derive(Clone, Debug)]
pub enum Door {
    /// Admin tokens, client certificates, and keys with scopes `keyvouch.*`.
    Credentials {
        /// Admin tokens. They can change while the server runs.
        tokens: watch::Receiver<Arc<[AdminToken]>>,
        /// Names of accepted client certificates.
        certificates: CertificateNames,
    },
    /// No credential is needed. Meant only for loopback addresses and Unix sockets.
    Open,
}

impl Default for Door {
    /// Accepts only keys with scopes `keyvouch.*`.
    fn default() -> Self {
        let (_, tokens) = watch::channel(Arc::default());
        Self::Credentials { tokens, certificates: CertificateNames::default() }
    }
}

impl Door {
    /// Returns whether no credential is needed.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Open)
    }
}

/// Names of client certificates that are accepted as credentials: DNS names and URIs.
#[derive(Clone, Debug, Default)]
pub struct CertificateNames {
    /// Names of administrators.
    pub admin: Vec<String>,
    /// Names of services that may only validate keys.
    pub validator: Vec<String>,
}

/// The source of a status that rejects a known caller.
#[derive(Debug, thiserror::Error)]
#[error("the caller lacks a permission")]
struct Rejected(Actor);

/// Returns a status that rejects `caller` because it lacks the permission `needed`.
pub(super) fn lacks_permission(caller: &Caller, needed: Permission) -> Status {
    let what = format!("this call needs the scope `{}`", needed.scope());
    let mut status = status::permission_denied(ErrorReason::PermissionDenied, what);
    status.set_source(Arc::new(Rejected(caller.actor())));
    status
}

/// Returns the caller that `status` rejects, if it is known.
pub(crate) fn rejected_actor(status: &Status) -> Option<&Actor> {
    status.source()?.downcast_ref().map(|Rejected(actor)| actor)
}

/// Authenticates callers.
#[derive(Clone, Debug)]
pub struct Authenticator {
    door: Arc<Door>,
    keys: ValidatorService,
    /// Limits concurrent lookups of credentials.
    lookups: Arc<Semaphore>,
}

impl Authenticator {
    /// Creates one that accepts the credentials in `door`, and keys that `keys` validates.
    #[must_use]
    pub fn new(door: Door, keys: ValidatorService) -> Self {
        Self { door: Arc::new(door), keys, lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)) }
    }

    /// Returns the caller who makes the call `request_id` with `headers`. The [`Peer`] of its connection is in
    /// `extensions`.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` without a credential that is known. Fails with another status if a key could not be looked up.
    pub(super) async fn authenticate(
        &self,
        headers: &HeaderMap,
        extensions: &Extensions,
        request_id: &str,
    ) -> Result<Caller, Status> {
        let Door::Credentials { tokens, certificates } = &*self.door else {
            return Ok(Caller::anonymous(request_id));
        };
        let mut given = headers.get_all(http::header::AUTHORIZATION).iter();
        let Some(header) = given.next() else {
            let now = SystemClock.now();
            let names = extensions.get::<Peer>().map_or(&[][..], |peer| peer.names(now));
            return by_certificate(certificates, names, request_id)
                .ok_or_else(|| status::unauthenticated(ErrorReason::CredentialRequired, NEEDED));
        };
        let invalid = |what| status::unauthenticated(ErrorReason::CredentialInvalid, what);
        if given.next().is_some() {
            // A call with more than one credential is ambiguous.
            return Err(invalid("more than one `authorization` header; send exactly one"));
        }
        let Some(credential) = header.to_str().ok().and_then(bearer_token) else {
            return Err(invalid(NEEDED));
        };
        if let Some(caller) = by_token(&tokens.borrow(), credential, request_id) {
            return Ok(caller);
        }
        self.by_key(credential, request_id).await?.ok_or_else(|| invalid(UNKNOWN))
    }

    /// Returns the caller of `request`: the one that the [`Guard`] found, if the method needs a permission.
    ///
    /// # Errors
    /// Fails as [`authenticate`](Self::authenticate).
    pub(super) async fn caller_of<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let extensions = request.extensions();
        if let Some(caller) = extensions.get::<Caller>() {
            return Ok(caller.clone());
        }
        let request_id = extensions.get().map_or("", RequestId::as_str);
        self.authenticate(request.metadata().as_ref(), extensions, request_id).await
    }

    /// Returns the caller, as [`authenticate`](Self::authenticate), if it has the permission `needed`.
    pub(super) async fn authorize(
        &self,
        headers: &HeaderMap,
        extensions: &Extensions,
        request_id: &str,
        needed: Permission,
    ) -> Result<Caller, Status> {
        let caller = self.authenticate(headers, extensions, request_id).await?;
        if caller.may(needed) { Ok(caller) } else { Err(lacks_permission(&caller, needed)) }
    }

    async fn by_key(&self, secret: &str, request_id: &str) -> Result<Option<Caller>, Status> {
        let lookups = Lookups::Limited(&self.lookups);
        let none = ScopeSet::default();
        let validation = self.keys.validate(secret.to_owned(), &none, ScopeMatch::All, None, lookups);
        let validation = validation.await.map_err(status::from_service)?;
        let key = validation.key.filter(|_| validation.verdict == Verdict::Allowed);
        Ok(key.map(|key| Caller::with_scopes(format!("key:{}", key.id), request_id, &key.scopes)))
    }
}

fn by_token(tokens: &[AdminToken], token: &str, request_id: &str) -> Option<Caller> {
    let digest = KeyHash::of(token);
    // Compare with all tokens, so that the duration does not depend on which one matches.
    let known = tokens.iter().fold(None, |known, token| {
        if token.digest.is_same_in_constant_time(&digest) { Some(token) } else { known }
    });
    known.map(|token| Caller::admin(format!("token:{}", token.name), request_id))
}

fn by_certificate(known: &CertificateNames, names: &[CertificateName], request_id: &str) -> Option<Caller> {
    let first_in =
        |list: &[String]| names.iter().find(|name| list.iter().any(|known| name.is_meant_by(known)));
    let actor = |name: &CertificateName| format!("certificate:{}", name.as_str());
    if let Some(name) = first_in(&known.admin) {
        return Some(Caller::admin(actor(name), request_id));
    }
    first_in(&known.validator).map(|name| Caller::validator(actor(name), request_id))
}

/// Returns the token of a header `Bearer <token>`. The scheme is case-insensitive (RFC 9110, section 11.1; RFC 6750,
/// section 2.1).
fn bearer_token(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim_matches(' ');
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Timestamp;

    #[test]
    fn each_token_has_its_name() {
        let digest = data_encoding::HEXUPPER.encode(KeyHash::of("another-token-of-enough").as_bytes());
        let tokens = [
            AdminToken::parse("alice:a-token-of-enough-characters").unwrap(),
            AdminToken::parse(&format!("bob:sha256:{digest}")).unwrap(),
        ];
        let actor = |token| by_token(&tokens, token, "r").map(|caller| caller.context(Timestamp::MIN).actor);
        assert_eq!(actor("a-token-of-enough-characters").unwrap(), "token:alice");
        assert_eq!(actor("another-token-of-enough").unwrap(), "token:bob");
        assert_eq!(actor("A-TOKEN-OF-ENOUGH-CHARACTERS"), None);
    }

    #[test]
    fn the_header_has_one_form() {
        for (header, token) in [
            ("Bearer abc", Some("abc")),
            ("bEARER  abc ", Some("abc")),
            ("", None),
            ("Bearer", None),
            ("Bearer ", None),
            ("abc", None),
            ("Basic YTpi", None),
            ("Bearer\tabc", None),
        ] {
            assert_eq!(bearer_token(header), token, "{header:?}");
        }
    }

    #[test]
    fn a_certificate_lets_in_by_its_whole_name() {
        let known = CertificateNames {
            admin: vec!["spiffe://example.org/ops".into()],
            validator: vec!["api.example.org".into()],
        };
        let caller = |names: &[&str]| {
            let name = |&name: &&str| {
                if name.contains(':') {
                    CertificateName::Uri(name.to_owned())
                } else {
                    CertificateName::Dns(name.to_owned())
                }
            };
            by_certificate(&known, &names.iter().map(name).collect::<Vec<_>>(), "r")
        };
        assert!(caller(&["x.example.org", "spiffe://example.org/ops"]).unwrap().may(Permission::Write));
        let validator = caller(&["api.example.org"]).unwrap();
        assert!(validator.may(Permission::Validate) && !validator.may(Permission::Read));
        for unknown in [&[][..], &["spiffe://example.org/ops/evil"], &["example.org"], &["API.example.org."]]
        {
            assert!(caller(unknown).is_none(), "{unknown:?}");
        }
    }
}
