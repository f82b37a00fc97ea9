//! Catches panics of handlers. A panic fails only its own call.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use http::Response;
use tonic::body::Body;

use crate::grpc::panicked;

/// Returns the response, or the status `INTERNAL` if `response` panics. The panic hook logs the panic.
pub(super) async fn caught(
    response: impl Future<Output = Result<Response<Body>, Infallible>>,
) -> Response<Body> {
    match AssertUnwindSafe(response).catch_unwind().await {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(_) => panicked().into_http(),
    }
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};

    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_internal_error() {
        let response = caught(async { panic!("a handler's fault") }).await;
        assert_eq!(Status::from_header_map(response.headers()).unwrap().code(), Code::Internal);
        let response = caught(async { Ok(Response::new(Body::empty())) }).await;
        assert!(Status::from_header_map(response.headers()).is_none());
    }
}
