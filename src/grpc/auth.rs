//! Authenticates callers by their credential: an admin token, a key of this server, or a client certificate.

mod guard;
mod recheck;
#[cfg(test)]
mod tests;
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
use super::{CacheOnly, CertificateName, Peer, RequestId, status};
use crate::domain::{KeyHash, ScopeMatch, ScopeSet, Timestamp, Verdict};
use crate::service::{Actor, Caller, Lookups, Permission, ValidatorService};

const CREDENTIAL_NEEDED: &str = "this call needs a credential: the metadata `authorization: Bearer <admin token or key>`, or a client certificate that the server accepts";
const CREDENTIAL_UNKNOWN: &str = "invalid credential: unknown, revoked or expired";

/// Maximum number of concurrent lookups of credentials. Further calls are rejected, so that random credentials can't
/// use up the lookups of validations.
const MAX_LOOKUPS: usize = 32;

/// The credentials that the server accepts.
#[derive(Clone, Debug)]
pub enum AcceptedCredentials {
    /// Admin tokens, client certificates, and keys with scopes `keyvouch.*`.
    Listed {
        /// Admin tokens. They can change while the server runs.
        tokens: watch::Receiver<Arc<[AdminToken]>>,
        /// Names of accepted client certificates.
        certificates: CertificateNames,
    },
    /// No credential is needed. Meant only for loopback addresses and Unix sockets.
    NotNeeded,
}

impl Default for AcceptedCredentials {
    /// Accepts only keys with scopes `keyvouch.*`.
    fn default() -> Self {
        let (_, tokens) = watch::channel(Arc::default());
        Self::Listed { tokens, certificates: CertificateNames::default() }
    }
}

impl AcceptedCredentials {
    /// Returns whether no credential is needed.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self, Self::NotNeeded)
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

/// The source of a status that rejects a caller: what the log adds to the status.
#[derive(Debug, thiserror::Error)]
enum Rejected {
    /// The caller is known.
    #[error("the caller lacks a permission")]
    Caller(Actor),
    /// The client has a certificate with these names.
    #[error("the certificate is not accepted as a credential")]
    Certificate(String),
}

impl Rejected {
    /// Returns what the log adds to `status`, if anything.
    fn of(status: &Status) -> Option<&Self> {
        status.source()?.downcast_ref()
    }
}

/// Returns a status that rejects `caller` because it lacks the permission `needed`.
pub(super) fn lacks_permission(caller: &Caller, needed: Permission) -> Status {
    let message = format!("this call needs the scope `{}`", needed.scope());
    let mut status = status::permission_denied(ErrorReason::PermissionDenied, message);
    status.set_source(Arc::new(Rejected::Caller(caller.actor())));
    status
}

/// Returns the status for a call without a credential. `peer` may have a certificate, which is not accepted.
fn lacks_credential(peer: Option<&Peer>, now: Timestamp) -> Status {
    let mut status = status::unauthenticated(ErrorReason::CredentialRequired, CREDENTIAL_NEEDED);
    if let Some(certificate) = peer.and_then(|peer| peer.describe_certificate(now)) {
        status.set_source(Arc::new(Rejected::Certificate(certificate)));
    }
    status
}

/// Returns the caller that `status` rejects, if it is known.
pub(crate) fn rejected_actor(status: &Status) -> Option<&Actor> {
    match Rejected::of(status)? {
        Rejected::Caller(actor) => Some(actor),
        Rejected::Certificate(_) => None,
    }
}

/// Returns the names in the certificate of the client that `status` rejects, if it has one that is not accepted.
pub(crate) fn rejected_certificate(status: &Status) -> Option<&str> {
    match Rejected::of(status)? {
        Rejected::Caller(_) => None,
        Rejected::Certificate(names) => Some(names),
    }
}

/// Authenticates callers.
#[derive(Clone, Debug)]
pub struct Authenticator {
    accepted: Arc<AcceptedCredentials>,
    keys: ValidatorService,
    /// Limits concurrent lookups of credentials.
    lookups: Arc<Semaphore>,
}

impl Authenticator {
    /// Creates an authenticator that accepts the credentials in `accepted`, and keys that `keys` validates. Certificates
    /// expire by the clock of `keys`.
    #[must_use]
    pub fn new(accepted: AcceptedCredentials, keys: ValidatorService) -> Self {
        Self { accepted: Arc::new(accepted), keys, lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)) }
    }

    /// Returns the caller who makes the call `request_id` with `headers`. The [`Peer`] of its connection is in
    /// `extensions`.
    ///
    /// # Errors
    /// Returns `UNAUTHENTICATED` without a valid credential. Returns another status if a key could not be looked up:
    /// `RESOURCE_EXHAUSTED` if the call may not look it up, because too many calls are in flight.
    pub(super) async fn authenticate(
        &self,
        headers: &HeaderMap,
        extensions: &Extensions,
        request_id: &str,
    ) -> Result<Caller, Status> {
        let AcceptedCredentials::Listed { tokens, certificates } = &*self.accepted else {
            return Ok(Caller::anonymous(request_id));
        };
        let mut credentials = headers.get_all(http::header::AUTHORIZATION).iter();
        let Some(header) = credentials.next() else {
            let (peer, now) = (extensions.get::<Peer>(), self.keys.now());
            let names = peer.map_or(&[][..], |peer| peer.names(now));
            return by_certificate(certificates, names, request_id)
                .ok_or_else(|| lacks_credential(peer, now));
        };
        let invalid = |message| status::unauthenticated(ErrorReason::CredentialInvalid, message);
        if credentials.next().is_some() {
            // A call with more than one credential is ambiguous.
            return Err(invalid("more than one `authorization` header; send exactly one"));
        }
        let Some(credential) = header.to_str().ok().and_then(bearer_token) else {
            return Err(invalid(CREDENTIAL_NEEDED));
        };
        if let Some(caller) = by_token(&tokens.borrow(), credential, request_id) {
            return Ok(caller);
        }
        let lookups = CacheOnly::lookups(extensions, Lookups::Limited(&self.lookups));
        self.by_key(credential, request_id, lookups).await?.ok_or_else(|| invalid(CREDENTIAL_UNKNOWN))
    }

    /// Returns the caller of `request`. If the method needs a permission, the [`Guard`] has authenticated it already.
    ///
    /// # Errors
    /// Fails like [`authenticate`](Self::authenticate).
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

    async fn by_key(
        &self,
        secret: &str,
        request_id: &str,
        lookups: Lookups<'_>,
    ) -> Result<Option<Caller>, Status> {
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
        |list: &[String]| names.iter().find(|name| list.iter().any(|known| name.matches_configured(known)));
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
