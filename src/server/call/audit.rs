//! Logs calls that are rejected because of their caller.

use std::net::IpAddr;

use http::Response;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::grpc::{Actor, rejected_actor, rejected_certificate};
use crate::telemetry::{Rejection, log_rejection};

/// Logs the response to a call of `method` by `peer` if it rejects the caller.
pub(super) fn answered(method: &str, peer: Option<IpAddr>, code: Code, response: &Response<Body>) {
    if !matches!(code, Code::PermissionDenied | Code::Unauthenticated) {
        return;
    }
    let status = Status::from_header_map(response.headers());
    let reason = status.as_ref().map(Status::message).unwrap_or_default();
    let certificate = response.extensions().get().and_then(rejected_certificate);
    log_rejection(&Rejection { method, peer, actor: actor(response), certificate, code, reason });
}

/// Returns the name of the caller, if it was authenticated.
fn actor(response: &Response<Body>) -> Option<&str> {
    let extensions = response.extensions();
    let rejected = extensions.get().and_then(rejected_actor);
    rejected.or_else(|| extensions.get()).map(|Actor(name)| name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_an_authenticated_caller_is_found() {
        let mut response = Status::permission_denied("no").into_http::<Body>();
        assert_eq!(actor(&response), None);
        response.extensions_mut().insert(Actor("token:ops".to_owned()));
        assert_eq!(actor(&response), Some("token:ops"));
    }
}
