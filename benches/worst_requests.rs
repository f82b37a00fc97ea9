//! Measures the cost of the largest requests to a server, per method, compared to plain ones.
//!
//!     worst_requests ADDRESS PID TOKEN
//!
//! Prints for each method the CPU time of the server per plain call and per call of the worst request in
//! microseconds, their ratio, and the name of that request. Requests and responses are read to their end.
//! Streams without an end are reset after their headers.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark measures and prints")]

#[path = "../tests/held/requests.rs"]
#[expect(dead_code, reason = "the test needs more of it")]
mod requests;

use std::fs;

use futures_util::future::join_all;
use h2::client::SendRequest;
use keyvouch::conformance::api::{Api, new_key};
use prost::bytes::Bytes;
use prost_reflect::MethodDescriptor;
use tokio::net::TcpStream;
use tonic::transport::Endpoint;

use self::requests::{Keys, methods, path};

/// Number of calls in flight.
const CONCURRENT: usize = 8;
/// CPU time of the server after which the measurement of a request is precise enough, in nanoseconds.
const ENOUGH: u64 = 150_000_000;
/// Maximum number of calls per request. A server closes a connection after 1,024 streams that were reset
/// early.
const MAX_CALLS: usize = 1_000;
/// Number of keys of each size.
const KEYS: usize = 250;
/// Methods whose responses have no end.
const ENDLESS: [&str; 2] = ["keyvouch.v1.Validator.WatchChanges", "grpc.health.v1.Health.Watch"];

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo bench` and `cargo test` run this program without arguments, so it has to exit successfully.
    let [address, pid, token] = arguments.as_slice() else {
        println!("usage: worst_requests ADDRESS PID TOKEN");
        return;
    };
    let server = Server { address: address.clone(), pid: pid.clone(), token: token.clone() };
    println!("{:62} {:>9} {:>9} {:>6}  worst request", "method", "plain", "worst", "ratio");
    for method in methods() {
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let api = Api::new(channel, token);
        let typical = Keys::create(&api, KEYS, new_key()).await;
        // Measured before newer keys exist, which listings would begin with.
        let plain = server.cost(&method, &requests::plain(&method, &typical)).await;
        let large = Keys::create(&api, KEYS, requests::largest_key()).await;
        let mut worst = (0.0, String::new());
        for case in requests::cases(&method, &typical, &large) {
            let cost = server.cost(&method, &case.requests).await;
            if cost > worst.0 {
                worst = (cost, case.name);
            }
        }
        let (cost, name) = worst;
        println!("{:62} {plain:9.1} {cost:9.1} {:6.1}  {name}", method.full_name(), cost / plain);
    }
}

struct Server {
    address: String,
    pid: String,
    token: String,
}

impl Server {
    /// Returns the CPU time of the server per call, in microseconds.
    async fn cost(&self, method: &MethodDescriptor, requests: &[Bytes]) -> f64 {
        let stream = TcpStream::connect(&self.address).await.unwrap();
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(1 << 24).initial_connection_window_size(1 << 28);
        let (client, connection) = builder.handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut calls = 0;
        let mut requests = requests.iter().cycle();
        let before = self.cpu_time();
        while calls < MAX_CALLS && self.cpu_time() - before < ENOUGH {
            let answers =
                requests.by_ref().take(CONCURRENT).map(|request| self.call(client.clone(), method, request));
            join_all(answers).await;
            calls += CONCURRENT;
        }
        let spent = self.cpu_time() - before;
        connection.abort();
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let cost = spent as f64 / 1_000.0 / calls as f64;
        cost
    }

    /// Makes a call and reads its response.
    async fn call(&self, client: SendRequest<Bytes>, method: &MethodDescriptor, request: &Bytes) {
        let mut client = client.ready().await.unwrap();
        let head = http::Request::post(format!("http://{}{}", self.address, path(method)))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", format!("Bearer {}", self.token));
        let (answer, mut body) = client.send_request(head.body(()).unwrap(), false).unwrap();
        body.reserve_capacity(request.len());
        body.send_data(request.clone(), true).unwrap();
        let mut answer = answer.await.unwrap().into_body();
        if ENDLESS.contains(&method.full_name()) {
            return;
        }
        while let Some(data) = answer.data().await {
            let Ok(data) = data else { return };
            answer.flow_control().release_capacity(data.len()).unwrap();
        }
    }

    /// Returns the CPU time of all threads of the server so far, in nanoseconds.
    fn cpu_time(&self) -> u64 {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).unwrap();
        let of_thread = |thread: fs::DirEntry| {
            let times = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            times.split(' ').next().and_then(|time| time.parse::<u64>().ok()).unwrap_or(0)
        };
        threads.filter_map(Result::ok).map(of_thread).sum()
    }
}
