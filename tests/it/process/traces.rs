//! Tests of traces with a collector of OpenTelemetry.

use rustix::process::Signal;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::{Request, Response, Status};

use keyvouch::conformance::api::{Api, new_key};
use keyvouch::grpc::pb;
use tonic::transport::Endpoint;

use super::program::Home;
use crate::support::TOKEN;

/// A collector that stores all requests.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Starts a collector on a free port.
    async fn start() -> (Self, String) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let collector = Self::default();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let service = TraceServiceServer::new(collector.clone());
        let serving = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
        tokio::spawn(serving);
        (collector, address)
    }

    fn spans(&self) -> Vec<Span> {
        let requests = self.0.lock().unwrap();
        let resources = requests.iter().flat_map(|request| &request.resource_spans);
        let scopes = resources.flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    fn attributes_of_resource(&self) -> Vec<(String, Option<Value>)> {
        let requests = self.0.lock().unwrap();
        let resource = requests[0].resource_spans[0].resource.clone().unwrap();
        resource.attributes.into_iter().map(|it| (it.key, it.value.and_then(|value| value.value))).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_of_calls_are_exported_before_the_server_ends() {
    let (collector, endpoint) = Collector::start().await;
    let home = Home::new();
    let settings = [
        "telemetry.traces=true".to_owned(),
        "telemetry.trace_ratio=0".to_owned(),
        format!("telemetry.otlp_endpoint={endpoint}"),
        format!("admin.tokens=tests:{TOKEN}"),
    ];
    let (home, mut server) = tokio::task::spawn_blocking(move || {
        let server = home.serve(&settings.iter().map(String::as_str).collect::<Vec<_>>());
        (home, server)
    })
    .await
    .unwrap();
    let channel =
        Endpoint::from_shared(format!("http://{}", server.address)).unwrap().connect().await.unwrap();
    let api = Api::new(channel, TOKEN);
    let (key, secret) = api.create(new_key()).await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    // Staleness 0 forces a read from the backend.
    let mut request = Request::new(pb::ValidateRequest {
        secret: secret.clone(),
        max_staleness: Some(prost_types::Duration::default()),
        ..pb::ValidateRequest::default()
    });
    // The caller samples the call, so the ratio of 0 has no effect.
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    request.metadata_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
    api.validator().validate(request).await.unwrap();
    server.signal(Signal::TERM);
    let status = tokio::task::spawn_blocking(move || server.ended()).await.unwrap();
    assert_eq!(status, Some(0), "{}", home.read("stderr"));

    let spans = collector.spans();
    let of_name = |name: &str| {
        let found = spans.iter().find(|span| span.name == name);
        found.unwrap_or_else(|| panic!("no span {name} in {spans:#?}"))
    };
    let call = of_name("keyvouch.v1.Validator/Validate");
    assert_eq!(data_encoding::HEXLOWER.encode(&call.trace_id), trace);
    assert_eq!(data_encoding::HEXLOWER.encode(&call.parent_span_id), "00f067aa0ba902b7");
    for inner in [of_name("lookup"), of_name("store")] {
        assert_eq!(inner.trace_id, call.trace_id);
    }
    assert!(
        spans.iter().all(|span| span.trace_id == call.trace_id),
        "only the call of the test must be sampled: {spans:#?}"
    );
    let named = ("service.name".to_owned(), Some(Value::StringValue("keyvouch".to_owned())));
    assert!(collector.attributes_of_resource().contains(&named));
    let all = format!("{:?}", collector.0.lock().unwrap());
    for secret in [&secret, &TOKEN.to_owned(), &key.owner_id] {
        assert!(!all.contains(&**secret), "{secret} in {all}");
    }
}

#[test]
fn an_unreachable_collector_is_logged_and_delays_nothing() {
    let home = Home::new();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = format!("telemetry.otlp_endpoint=http://{closed}");
    let traces = ["telemetry.traces=true", "telemetry.trace_ratio=1", &endpoint];
    let mut server = home.serve(&[&traces[..], &["telemetry.log_format=json"]].concat());
    home.json(&server, &["key", "list"]);
    server.signal(Signal::TERM);
    assert_eq!(server.ended(), Some(0));
    let is_export_error = |entry: &serde_json::Value| {
        entry["level"] == "ERROR" && entry["target"].as_str().unwrap().starts_with("opentelemetry")
    };
    assert!(home.log().iter().any(is_export_error), "{}", home.read("stderr"));
}

#[test]
fn an_unsupported_exporter_fails_the_startup() {
    let home = Home::new();
    let mut command = home.command(&["serve", "--set", "telemetry.traces=true"]);
    let done = command.env("OTEL_TRACES_EXPORTER", "zipkin").output().unwrap();
    let stderr = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("OTEL_TRACES_EXPORTER") && stderr.contains("zipkin"), "{stderr}");
}
