//! The span of a call, in the log and in traces.

use http::HeaderMap;
use tonic::Code;
use tracing::Span;
use tracing::field::Empty;

use crate::grpc::RequestId;
use crate::telemetry;

/// Creates the span of a call. It continues the caller's trace.
pub(super) fn span(method: &str, id: &RequestId, headers: &HeaderMap) -> Span {
    let span =
        tracing::info_span!("call", method, request_id = id.as_str(), otel.name = Empty, otel.kind = Empty,);
    telemetry::continue_trace(&span, method, headers);
    span
}

/// Records the status of the call whose span is the current one.
pub(super) fn answered(code: Code) {
    telemetry::record_status(&Span::current(), code);
    tracing::debug!(status = i32::from(code), "responded");
}
