//! Authorizes calls: their caller needs the permission of the method.

use std::convert::Infallible;
use std::task::{Context, Poll};

use http::{Request, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use super::Authenticator;
use crate::grpc::methods::Method;
use crate::grpc::{CallFuture, CallHandler, RequestId};
use crate::service::Permission;

/// Callers that may call `Validator/Validate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ValidatorAccess {
    /// Every client.
    #[default]
    Open,
    /// Callers with a credential that permits validation.
    Credential,
}

/// A service that only authorized callers can call. It adds the `Caller` to the extensions of the request.
#[derive(Clone, Debug)]
pub struct Guard<S> {
    inner: S,
    auth: Authenticator,
    access: ValidatorAccess,
}

impl<S> Guard<S> {
    /// Creates a guard that forwards calls to `inner` if `auth` authorizes their caller. Only public methods need no
    /// credential.
    pub fn new(inner: S, auth: Authenticator) -> Self {
        Self { inner, auth, access: ValidatorAccess::Credential }
    }

    /// Returns the guard with another access rule for the methods whose access is configured, which only `Validator`
    /// has.
    #[must_use]
    pub fn with_access(self, access: ValidatorAccess) -> Self {
        Self { access, ..self }
    }

    /// Returns the permission that a call of `path` needs. `None` if every client may call it.
    fn needed(&self, path: &str) -> Option<Permission> {
        // The service itself rejects calls of unknown methods.
        Method::of(path)?.access.permission(self.access)
    }
}

impl<S: NamedService> NamedService for Guard<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: CallHandler<Future = CallFuture>> Service<Request<Body>> for Guard<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = CallFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> CallFuture {
        let Some(permission) = self.needed(request.uri().path()) else {
            return self.inner.call(request);
        };
        // Only the instance that was polled ready may be called, so its clone stays here.
        let not_ready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, not_ready);
        let auth = self.auth.clone();
        Box::pin(async move {
            let (mut head, body) = request.into_parts();
            let request_id = head.extensions.get().map_or("", RequestId::as_str);
            let caller = match auth.authorize(&head.headers, &head.extensions, request_id, permission).await {
                Ok(caller) => caller,
                Err(rejection) => return Ok(rejection.into_http()),
            };
            let actor = caller.actor();
            head.extensions.insert(caller);
            // Streams authorize their caller again while they are open.
            head.extensions.insert(auth);
            let mut response = inner.call(Request::from_parts(head, body)).await?;
            response.extensions_mut().insert(actor);
            Ok(response)
        })
    }
}
