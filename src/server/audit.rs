//! Refused calls, in the log.

use std::net::IpAddr;

use http::Response;
use tonic::Status;
use tonic::body::Body;

use crate::grpc::Actor;
use crate::telemetry::LogLimit;

/// Says in the log that a call was refused for who made it. Who has no credential could fill a table with such lines, so they
/// are no part of the events that are stored, and only some of many are written.
pub(super) fn refused(path: &str, peer: Option<IpAddr>, response: &Response<Body>) {
    static LIMIT: LogLimit = LogLimit::new();
    let Some(left_out) = LIMIT.admit() else { return };
    let refusal = Status::from_header_map(response.headers());
    tracing::warn!(
        target: "keyvouch::audit",
        method = path,
        peer = peer.map(tracing::field::display),
        actor = response.extensions().get::<Actor>().map(|Actor(name)| name.as_str()),
        code = refusal.as_ref().map(|refusal| tracing::field::debug(refusal.code())),
        reason = refusal.as_ref().map(Status::message),
        left_out,
        "a call was refused"
    );
}
