//! The kind of service that every layer around a call wraps.

use std::convert::Infallible;

use http::{Request, Response};
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tower::Service;

/// The future that generated services and the layers around them return.
pub(crate) type CallFuture = BoxFuture<Response<Body>, Infallible>;

/// A service that answers calls, such as a generated service or the router. Every suitable service implements it, so it
/// serves as a name for these bounds.
pub trait CallHandler:
    Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
    + Clone
    + Send
    + 'static
{
}

impl<S> CallHandler for S where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
        + Clone
        + Send
        + 'static
{
}
