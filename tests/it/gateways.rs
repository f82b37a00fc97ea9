//! Tests with gateways that authorize requests by the HTTP status of a subrequest, and that are misconfigured to
//! send it to the gRPC port. They must deny every request.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use keyvouch::conformance::api::new_key;
use keyvouch::repository::MemoryRepository;

use crate::process::program::{tool, wait_for};
use crate::support::TestServer;

/// A process. Dropping it kills the process.
pub(crate) struct Gateway {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

impl Gateway {
    pub(crate) fn start(mut command: Command, folder: &Path, address: SocketAddr) -> Self {
        let log = std::fs::File::create(folder.join("log")).unwrap();
        let both = log.try_clone().unwrap();
        let child = command.stdin(Stdio::null()).stdout(log).stderr(both).spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error} (scripts/test installs it)"));
        let mut gateway = Self { child, address };
        wait_for("the gateway", || {
            let ended = gateway.child.try_wait().unwrap();
            assert!(ended.is_none(), "{}", std::fs::read_to_string(folder.join("log")).unwrap());
            TcpStream::connect(address).is_ok().then_some(())
        });
        gateway
    }

    /// Returns the status and the complete response to a request with these headers.
    fn request(&self, method: &str, path: &str, headers: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: 0\r\n{headers}\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        let status = response.split(' ').nth(1).unwrap().parse().unwrap();
        (status, response)
    }
}

/// Starts an HTTP server whose response must never reach a client.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let response = "HTTP/1.1 200 OK\r\ncontent-length: 11\r\nconnection: close\r\n\r\nSECRET DATA";
            let _ = stream.write_all(response.as_bytes());
        }
    });
    address
}

/// Starts nginx with `auth_request`, which checks the HTTP status of its subrequest.
fn nginx(folder: &Path, upstream: SocketAddr, keyvouch: SocketAddr) -> Gateway {
    let (address, folder_name) = (free_address(), folder.display());
    let configuration = format!(
        "daemon off;\nmaster_process off;\npid {folder_name}/pid;\nerror_log {folder_name}/error.log;\nevents {{}}\n\
         http {{\n access_log off;\n client_body_temp_path {folder_name}/body;\n proxy_temp_path {folder_name}/proxy;\n \
         fastcgi_temp_path {folder_name}/fastcgi;\n uwsgi_temp_path {folder_name}/uwsgi;\n \
         scgi_temp_path {folder_name}/scgi;\n \
         server {{\n  listen {address};\n  location /app {{ auth_request /_auth; proxy_pass http://{upstream}; }}\n  \
         location = /_auth {{ internal; grpc_pass grpc://{keyvouch}; }}\n }}\n}}\n"
    );
    std::fs::write(folder.join("nginx.conf"), configuration).unwrap();
    let mut command = Command::new("/usr/sbin/nginx");
    command.arg("-p").arg(folder).arg("-c").arg(folder.join("nginx.conf"));
    Gateway::start(command, folder, address)
}

/// Starts Envoy with `ext_authz` over HTTP, which checks the status of its request. It forwards the method
/// and the path of its client, and the configured headers.
fn envoy(folder: &Path, upstream: SocketAddr, keyvouch: SocketAddr) -> Gateway {
    let filter = format!(
        "          - name: envoy.filters.http.ext_authz\n            typed_config:\n              \
         \"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz\n              \
         http_service: {{ server_uri: {{ uri: \"http://{keyvouch}\", cluster: keyvouch, timeout: 5s }}, \
         authorization_request: {{ allowed_headers: {{ patterns: [{{ exact: content-type }}, {{ exact: te }}] }} }} }}\n"
    );
    let clusters = cluster("upstream", upstream, "") + &cluster("keyvouch", keyvouch, HTTP2);
    start_envoy(folder, &filter, &clusters)
}

/// Starts Envoy in front of a gRPC server.
pub(crate) fn envoy_proxy(folder: &Path, upstream: SocketAddr) -> Gateway {
    start_envoy(folder, "", &cluster("upstream", upstream, HTTP2))
}

const HTTP2: &str = "    typed_extension_protocol_options:\n      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n        \
                     \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n        \
                     explicit_http_config: { http2_protocol_options: {} }\n";

fn cluster(name: &str, to: SocketAddr, protocol: &str) -> String {
    format!(
        "  - name: {name}\n    type: STATIC\n    connect_timeout: 5s\n{protocol}    load_assignment:\n      \
         cluster_name: {name}\n      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: \
         {{ address: {}, port_value: {} }} }} }} }}] }}]\n",
        to.ip(),
        to.port()
    )
}

/// Starts Envoy with a filter before that of routes, which lead to the cluster `upstream`.
fn start_envoy(folder: &Path, filter: &str, clusters: &str) -> Gateway {
    let address = free_address();
    let configuration = format!(
        "static_resources:\n  listeners:\n  - address: {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }}\n    \
         filter_chains:\n    - filters:\n      - name: envoy.filters.network.http_connection_manager\n        \
         typed_config:\n          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n          \
         stat_prefix: ingress\n          stream_idle_timeout: 0s\n          route_config:\n            virtual_hosts:\n            - name: all\n              \
         domains: [\"*\"]\n              routes: [{{ match: {{ prefix: / }}, route: {{ cluster: upstream, timeout: 0s }} }}]\n          \
         http_filters:\n{filter}          - name: envoy.filters.http.router\n            typed_config:\n              \
         \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router\n  clusters:\n{clusters}",
        address.port(),
    );
    std::fs::write(folder.join("envoy.yaml"), configuration).unwrap();
    let mut command = Command::new(tool("envoy"));
    command.args(["--log-level", "warning", "--concurrency", "1", "--use-dynamic-base-id", "-c"]);
    command.arg(folder.join("envoy.yaml"));
    Gateway::start(command, folder, address)
}

/// Checks that `gateway` denies requests with and without keys, and of all methods and paths that could be
/// forwarded to the gRPC port.
async fn check_denies_every_request(gateway: fn(&Path, SocketAddr, SocketAddr) -> Gateway) {
    let server = TestServer::start(MemoryRepository::new()).await;
    let (_, secret) = server.api().await.create(new_key()).await;
    let folder = crate::databases::folder("gateway");
    let (upstream, keyvouch) = (upstream(), server.address);
    tokio::task::spawn_blocking(move || {
        let gateway = gateway(folder.path(), upstream, keyvouch);
        for headers in [
            String::new(),
            "content-type: application/grpc\r\n".to_owned(),
            "authorization: Bearer nonsense\r\n".to_owned(),
            // Requests with a valid key are denied too, because the gateway does not call a method.
            format!("authorization: Bearer {secret}\r\n"),
            format!("authorization: Bearer {secret}\r\ncontent-type: application/grpc\r\n"),
        ] {
            // Some paths are those of gRPC methods.
            for (method, path) in [
                ("GET", "/app"),
                ("HEAD", "/app"),
                ("POST", "/app"),
                ("POST", "/app/keyvouch.v1.Validator/Validate"),
                ("POST", "/keyvouch.v1.Validator/Validate"),
                ("POST", "/grpc.health.v1.Health/Check"),
            ] {
                let (status, response) = gateway.request(method, path, &headers);
                // Envoy responds to a rejected gRPC call with 200 and a `grpc-status`.
                let is_denied = status >= 400 || response.contains("\r\ngrpc-status: ");
                assert!(is_denied, "{method} {path} {headers}: {response}");
                assert!(!response.contains("SECRET DATA"), "{method} {path} {headers}: {response}");
            }
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_auth_request_denies_every_request() {
    check_denies_every_request(nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_ext_authz_denies_every_request() {
    check_denies_every_request(envoy).await;
}
