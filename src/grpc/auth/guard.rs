//! Authorizes calls: their caller needs the permission of the method.

use std::convert::Infallible;
use std::task::{Context, Poll};

use http::{Request, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::server::NamedService;
use tower::Service;

use super::Authenticator;
use crate::grpc::RequestId;
use crate::grpc::methods::{Access, Method};
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

/// A service that only authorized callers can call. The handler finds the `Caller` in the
/// request's extensions.
#[derive(Clone, Debug)]
pub struct Guard<S> {
    inner: S,
    auth: Authenticator,
    access: ValidatorAccess,
}

impl<S> Guard<S> {
    /// Creates a guard that forwards calls to `inner` if `auth` authorizes their caller, or if `access` permits every
    /// client.
    pub fn new(inner: S, auth: Authenticator, access: ValidatorAccess) -> Self {
        Self { inner, auth, access }
    }

    /// Returns the permission that a call of `path` needs. `None` if every client may call it.
    fn needed(&self, path: &str) -> Option<Permission> {
        // The service itself rejects calls of unknown methods.
        match Method::of(path)?.access {
            Access::Public => None,
            Access::Configured(permission) => {
                (self.access == ValidatorAccess::Credential).then_some(permission)
            }
            Access::Restricted(permission) => Some(permission),
        }
    }
}

impl<S: NamedService> NamedService for Guard<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Guard<S>
where
    S: Service<
            Request<Body>,
            Response = Response<Body>,
            Error = Infallible,
            Future = BoxFuture<Response<Body>, Infallible>,
        > + Clone
        + Send
        + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some(permission) = self.needed(request.uri().path()) else {
            return self.inner.call(request);
        };
        // Call the clone that `poll_ready` was called on: a fresh clone may not be ready.
        let ready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready);
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
            // Streams need it to authorize again while they are open.
            head.extensions.insert(auth);
            let mut answer = inner.call(Request::from_parts(head, body)).await?;
            answer.extensions_mut().insert(actor);
            Ok(answer)
        })
    }
}
