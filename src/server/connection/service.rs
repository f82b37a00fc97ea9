//! The service of one connection: rejects requests that are not calls, counts the calls as open streams, and
//! passes them to the layer around every call.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service as _;

use super::activity::ConnectionActivity;
use super::http_gate;
use super::read_ahead::read_ahead;
use super::request_body::TrackedRequestBody;
use super::response_body::{End, TrackedResponseBody};
use crate::grpc::methods::{Method, Service};
use crate::grpc::{Peer, overloaded, too_many_header_fields};
use crate::server::call::{BufferQuota, CallService};

/// Maximum number of header fields of a call, without the pseudo-header fields of HTTP/2.
const MAX_HEADER_FIELDS: usize = 64;

/// Handles the calls of a connection.
#[derive(Clone)]
pub(super) struct ConnectionService {
    service: CallService<Routes>,
    peer: Peer,
    activity: ConnectionActivity,
    is_ending: watch::Receiver<bool>,
    drain_timeout: Duration,
}

impl ConnectionService {
    /// Creates a service that passes calls of `peer` to `service`. When `is_ending` becomes true, long-lived
    /// streams end at once, and other calls after `drain_timeout`.
    pub(super) fn new(
        service: CallService<Routes>,
        peer: Peer,
        activity: ConnectionActivity,
        is_ending: watch::Receiver<bool>,
        drain_timeout: Duration,
    ) -> Self {
        Self { service, peer, activity, is_ending, drain_timeout }
    }

    /// Returns a future that completes when the response has to end, even if its body has more data. A
    /// long-lived stream ends with its connection, and its client resumes it on another one.
    fn end(&self, is_long_lived: bool) -> End {
        let mut is_ending = self.is_ending.clone();
        let grace = (!is_long_lived).then_some(self.drain_timeout);
        Box::pin(async move {
            // An error means that the connection is gone, which ends the response as well.
            let _ = is_ending.wait_for(|is_ending| *is_ending).await;
            if let Some(grace) = grace {
                tokio::time::sleep(grace).await;
            }
        })
    }
}

impl hyper::service::Service<Request<Incoming>> for ConnectionService {
    type Response = Response<TrackedResponseBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let method = Method::of(request.uri().path());
        let is_long_lived = method.is_some_and(|method| method.is_long_lived);
        let stream = self.activity.state().open_stream(method);
        let rejection = http_gate::rejection(&request)
            .or_else(|| stream.is_none().then(|| overloaded().into_http()))
            // A header field takes many times its encoded size in memory until the call ends.
            .or_else(|| {
                (request.headers().len() > MAX_HEADER_FIELDS).then(|| too_many_header_fields().into_http())
            });
        let call = self.activity.begin(stream, is_long_lived);
        if let Some(rejection) = rejection {
            let response = rejection.map(|body| TrackedResponseBody::new(body, None, call));
            return Box::pin(std::future::ready(Ok(response)));
        }
        let end = Some(self.end(is_long_lived));
        let progress = call.progress().clone();
        let is_reflection = method.is_some_and(|method| method.service == Service::Reflection);
        let mut request = request.map(|body| {
            let body = TrackedRequestBody::new(body, progress);
            if is_reflection { Body::new(read_ahead(body)) } else { Body::new(body) }
        });
        request.extensions_mut().insert(self.peer.clone());
        request.extensions_mut().insert(BufferQuota(self.activity.state().partial()));
        let response = self.service.clone().call(request);
        Box::pin(async move {
            let response = response.await?;
            Ok(response.map(|body| TrackedResponseBody::new(body, end, call)))
        })
    }
}
