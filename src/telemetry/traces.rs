//! Spans for an OpenTelemetry collector, sent by OTLP over gRPC.
//!
//! The [variables of OpenTelemetry](https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/) are
//! honoured: endpoint, headers, time-outs, sampler, the service's name and attributes, and the limits of the batches.

use std::sync::OnceLock;

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use tonic::Code;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::error_chain;

/// The name of this service, if `OTEL_SERVICE_NAME` gives none.
const SERVICE: &str = "keyvouch";

/// Whether spans are sent: what only they need is left out otherwise.
static IS_ON: OnceLock<()> = OnceLock::new();

/// What is sent, and where.
#[derive(Clone, Debug)]
pub struct TraceOptions {
    /// The collector: `http://HOST:PORT`. `None`: what `OTEL_EXPORTER_OTLP_ENDPOINT` says, or port 4317 of this machine.
    pub endpoint: Option<String>,
    /// The share of calls that are traced, of those whose caller does not say whether; unless `OTEL_TRACES_SAMPLER` is set.
    pub ratio: f64,
}

/// Sends spans until it is shut down.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

/// Why spans can't be sent.
#[derive(Debug, thiserror::Error)]
#[error(
    "telemetry.traces: spans can't be sent: check telemetry.otlp_endpoint and the variables OTEL_EXPORTER_OTLP_*"
)]
pub struct TraceError(#[source] opentelemetry_otlp::ExporterBuildError);

impl Traces {
    /// Begins. Has to be called on the runtime that is to carry the connection.
    pub fn start(options: &TraceOptions) -> Result<Self, TraceError> {
        let mut exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic();
        if let Some(endpoint) = &options.endpoint {
            exporter = exporter.with_endpoint(endpoint);
        }
        let has = |variable: &str| std::env::var_os(variable).is_some();
        let mut resource = Resource::builder()
            .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        if !has("OTEL_SERVICE_NAME") {
            resource = resource.with_service_name(SERVICE);
        }
        let mut provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter.build().map_err(TraceError)?)
            .with_resource(resource.build());
        if !has("OTEL_TRACES_SAMPLER") {
            let by_ratio = Sampler::TraceIdRatioBased(options.ratio);
            provider = provider.with_sampler(Sampler::ParentBased(Box::new(by_ratio)));
        }
        IS_ON.get_or_init(|| ());
        Ok(Self(provider.build()))
    }

    pub(super) fn tracer(&self) -> SdkTracer {
        self.0.tracer(SERVICE)
    }

    /// Sends what waits, and ends. Blocks for as long as the exporter's time-out.
    pub fn shutdown(self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(error = %error_chain(&error), "the last spans were not sent");
        }
    }
}

/// Names the span of a call of `path` by the
/// [conventions](https://opentelemetry.io/docs/specs/semconv/rpc/grpc/), and continues the caller's trace by its
/// [`traceparent`](https://www.w3.org/TR/trace-context/).
pub(crate) fn continue_trace(span: &Span, path: &str, headers: &HeaderMap) {
    if IS_ON.get().is_none() {
        return;
    }
    span.record("otel.name", path.trim_start_matches('/'));
    span.record("otel.kind", "server");
    span.set_attribute("rpc.system", "grpc");
    let parent = TraceContextPropagator::new().extract(&Headers(headers));
    // It fails for a span that nobody records.
    let _ = span.set_parent(parent);
}

/// Notes with which status the call of `span` was answered.
pub(crate) fn note_status(span: &Span, status: Code) {
    if IS_ON.get().is_some() {
        span.set_attribute("rpc.grpc.status_code", i64::from(i32::from(status)));
    }
}

struct Headers<'h>(&'h HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
