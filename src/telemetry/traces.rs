//! Exports spans to an OpenTelemetry collector, by OTLP over gRPC.
//!
//! The [variables of
//! OpenTelemetry](https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/) apply:
//! endpoint, headers, timeouts, sampler, the service's name and attributes, and the limits of the batches.

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

use super::{CollectorUrl, error_chain};

/// Default name of the service, if `OTEL_SERVICE_NAME` is unset.
const SERVICE: &str = "keyvouch";

/// Set if spans are exported. Attributes that only spans need are omitted otherwise.
static IS_EXPORTING: OnceLock<()> = OnceLock::new();

/// Options of the export.
#[derive(Clone, Debug)]
pub(crate) struct TraceOptions {
    /// URL of the collector, as `http://HOST:PORT`. If `None`, `OTEL_EXPORTER_OTLP_ENDPOINT` applies, or else
    /// port 4317 of this machine.
    pub endpoint: Option<CollectorUrl>,
    /// Fraction of calls that are traced, among those whose caller did not decide it. Ignored if
    /// `OTEL_TRACES_SAMPLER` is set.
    pub ratio: f64,
}

impl TraceOptions {
    /// Returns whether the URL of the collector had credentials, which are not sent.
    pub(crate) fn has_unused_credentials(&self) -> bool {
        self.endpoint.as_ref().is_some_and(CollectorUrl::had_credentials)
    }
}

/// Exports spans until it is shut down.
#[derive(Debug)]
pub(crate) struct Traces(SdkTracerProvider);

/// The reason why spans can't be exported.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TraceError {
    /// The exporter can't be created with these options.
    #[error(
        "telemetry.traces: can't create the exporter of spans; check telemetry.otlp_endpoint and the variables OTEL_EXPORTER_OTLP_*"
    )]
    Exporter(#[source] opentelemetry_otlp::ExporterBuildError),
    /// A variable has an unsupported value.
    #[error("{variable}: unsupported value `{value}`; use {supported}, or unset the variable")]
    UnsupportedValue {
        /// Name of the variable.
        variable: &'static str,
        /// Value of the variable.
        value: String,
        /// Supported values.
        supported: &'static str,
    },
}

impl Traces {
    /// Starts the export. Returns `None` if the variables of OpenTelemetry disable it. It has to be called on
    /// the runtime that should drive the connection.
    ///
    /// # Errors
    /// Returns an error if a variable has an unsupported value, or if the exporter can't be created.
    pub(crate) fn start(options: &TraceOptions) -> Result<Option<Self>, TraceError> {
        let variables = Variables(&|name| std::env::var(name).ok());
        if variables.disable_traces()? {
            return Ok(None);
        }
        let mut exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic();
        if let Some(endpoint) = &options.endpoint {
            exporter = exporter.with_endpoint(endpoint.without_credentials());
        }
        let mut resource = Resource::builder()
            .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        if !variables.set_service_name() {
            resource = resource.with_service_name(SERVICE);
        }
        let mut provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter.build().map_err(TraceError::Exporter)?)
            .with_resource(resource.build());
        if variables.value("OTEL_TRACES_SAMPLER").is_none() {
            let by_ratio = Sampler::TraceIdRatioBased(options.ratio);
            provider = provider.with_sampler(Sampler::ParentBased(Box::new(by_ratio)));
        }
        IS_EXPORTING.get_or_init(|| ());
        Ok(Some(Self(provider.build())))
    }

    pub(super) fn tracer(&self) -> SdkTracer {
        self.0.tracer(SERVICE)
    }

    /// Exports the remaining spans, and stops. Blocks for at most the timeout of the exporter.
    pub(crate) fn shutdown(self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(error = %error_chain(&error), "could not export the last spans");
        }
    }
}

/// The variables of OpenTelemetry. An empty variable counts as
/// [unset](https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/).
struct Variables<'v>(&'v dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    fn value(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    /// Returns whether the variables disable traces. Returns an error for unsupported values.
    fn disable_traces(&self) -> Result<bool, TraceError> {
        if self.value("OTEL_SDK_DISABLED").is_some_and(|it| it.eq_ignore_ascii_case("true")) {
            return Ok(true);
        }
        let checks = [
            ("OTEL_TRACES_EXPORTER", &["otlp", "none"][..], "otlp or none"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", &["grpc"], "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", &["grpc"], "grpc"),
            (
                "OTEL_TRACES_SAMPLER",
                &SAMPLERS,
                "always_on, always_off, traceidratio, or one of them with the prefix parentbased_",
            ),
        ];
        for (variable, accepted, supported) in checks {
            if let Some(value) = self.value(variable).filter(|value| !accepted.contains(&value.as_str())) {
                return Err(TraceError::UnsupportedValue { variable, value, supported });
            }
        }
        Ok(self.value("OTEL_TRACES_EXPORTER").as_deref() == Some("none"))
    }

    /// Returns whether the variables set the name of the service.
    fn set_service_name(&self) -> bool {
        let attributes = self.value("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
        let mut names = attributes.split(',').filter_map(|attribute| attribute.split('=').next());
        self.value("OTEL_SERVICE_NAME").is_some() || names.any(|name| name.trim() == "service.name")
    }
}

/// The samplers that the SDK supports.
const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// Names the span of a call of `method` according to the
/// [conventions](https://opentelemetry.io/docs/specs/semconv/rpc/grpc/), and continues the caller's trace
/// from its [`traceparent`](https://www.w3.org/TR/trace-context/).
pub(crate) fn continue_trace(span: &Span, method: &str, headers: &HeaderMap) {
    if IS_EXPORTING.get().is_none() {
        return;
    }
    span.record("otel.name", method);
    span.record("otel.kind", "server");
    span.set_attribute("rpc.system", "grpc");
    let parent = TraceContextPropagator::new().extract(&Headers(headers));
    // `set_parent` fails for a span that is not recorded, which is harmless.
    let _ = span.set_parent(parent);
}

/// Records the status of the call of `span`.
pub(crate) fn record_status(span: &Span, status: Code) {
    if IS_EXPORTING.get().is_some() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_disable_traces_and_unsupported_values_are_rejected() {
        let outcome = |variable: &'static str, value: &'static str| {
            let variables = |asked: &str| (asked == variable).then(|| value.to_owned());
            Variables(&variables).disable_traces().map_err(|it| it.to_string())
        };
        for (variable, value, is_off) in [
            ("PATH", "/bin", false),
            ("OTEL_SDK_DISABLED", "TRUE", true),
            ("OTEL_SDK_DISABLED", "false", false),
            ("OTEL_TRACES_EXPORTER", "none", true),
            ("OTEL_TRACES_EXPORTER", "otlp", false),
            ("OTEL_TRACES_EXPORTER", "", false),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", false),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio", false),
            ("OTEL_TRACES_SAMPLER", "", false),
        ] {
            assert_eq!(outcome(variable, value), Ok(is_off), "{variable}={value}");
        }
        for (variable, value) in [
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
            ("OTEL_TRACES_SAMPLER", "nonsense"),
        ] {
            let problem = outcome(variable, value).unwrap_err();
            assert!(problem.contains(variable) && problem.contains(value), "{problem}");
        }
    }

    #[test]
    fn the_default_service_name_applies_unless_a_variable_sets_it() {
        let is_named = |variable: &'static str, value: &'static str| {
            Variables(&|asked: &str| (asked == variable).then(|| value.to_owned())).set_service_name()
        };
        assert!(is_named("OTEL_SERVICE_NAME", "x") && !is_named("OTEL_SERVICE_NAME", ""));
        assert!(is_named("OTEL_RESOURCE_ATTRIBUTES", "a=b, service.name=x"));
        assert!(!is_named("OTEL_RESOURCE_ATTRIBUTES", "a=service.name,service.namespace=x"));
    }
}
