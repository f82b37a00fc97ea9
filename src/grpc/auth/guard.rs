//! What stands before a service: it lets callers through who may make the call.

use std::convert::Infallible;
use std::task::{Context, Poll};

use http::{Request, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::server::NamedService;
use tower::Service;

use super::{Authenticator, Refusal};
use crate::grpc::RequestId;
use crate::service::Permission;

/// Who may call `Validator`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ValidatorAccess {
    /// Whoever reaches it.
    #[default]
    Open,
    /// Who has a credential that may validate.
    Credential,
}

/// A service that only those can call who may. The [`Caller`](crate::service::Caller) is in the request's extensions then.
#[derive(Clone, Debug)]
pub struct Guard<S> {
    inner: S,
    auth: Authenticator,
    needed: fn(&str) -> Option<Permission>,
}

impl<S> Guard<S> {
    /// `KeyStore`: those who read need not be able to write.
    pub fn key_store(inner: S, auth: Authenticator) -> Self {
        let needed = |method: &str| {
            let reads = ["GetKey", "ListKeys", "StreamKeys", "ListEvents"];
            Some(if reads.contains(&method) { Permission::Read } else { Permission::Write })
        };
        Self { inner, auth, needed }
    }

    /// `Validator`.
    pub fn validator(inner: S, auth: Authenticator, access: ValidatorAccess) -> Self {
        let needed: fn(&str) -> Option<Permission> = match access {
            ValidatorAccess::Open => |method| (method == "WatchChanges").then_some(Permission::Read),
            ValidatorAccess::Credential => {
                |method| Some(if method == "WatchChanges" { Permission::Read } else { Permission::Validate })
            }
        };
        Self { inner, auth, needed }
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
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        let Some(permission) = (self.needed)(method) else {
            return self.inner.call(request);
        };
        // The clone that was ready is the one to call.
        let ready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready);
        let auth = self.auth.clone();
        Box::pin(async move {
            let (mut head, body) = request.into_parts();
            let request_id = head.extensions.get().map_or("", RequestId::as_str);
            let caller = auth.authorize(&head.headers, &head.extensions, request_id, permission).await;
            let (mut answer, actor) = match caller {
                Ok(caller) => {
                    let actor = caller.actor();
                    head.extensions.insert(caller);
                    // For streams, which outlive this answer.
                    head.extensions.insert(auth);
                    (inner.call(Request::from_parts(head, body)).await?, Some(actor))
                }
                Err(Refusal { status, actor }) => (status.into_http(), actor),
            };
            if let Some(actor) = actor {
                answer.extensions_mut().insert(actor);
            }
            Ok(answer)
        })
    }
}
