//! Measures the memory that the server holds for clients that don't read responses or don't complete requests.
//! The memory is that of the whole process, so this is a single test in a program of its own.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod requests;
#[path = "../it/support.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod support;

use std::alloc::System;
use std::time::Duration;

use futures_util::future::join_all;
use keyvouch::conformance::api::new_key;
use keyvouch::repository::MemoryRepository;
use prost::bytes::Bytes;
use prost_reflect::MethodDescriptor;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::net::TcpStream;

use self::requests::{CaseKind, Keys};
use self::support::{TOKEN, TestServer, config};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Number of streams on the connection, which is the server's default maximum.
const STREAMS: usize = 250;
/// Number of keys of each kind. The large ones fill several pages.
const KEYS: usize = 40;
/// Limit for the memory that the server holds per stream, in bytes.
const MAX_HELD: usize = 64 * 1024;
/// Timeout of all waits.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Returns the number of allocated bytes.
fn allocated() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated.wrapping_sub(stats.bytes_deallocated)
}

/// Returns the number of allocated bytes once it is stable.
async fn settled() -> usize {
    let stable = async {
        let (mut last, mut unchanged) = (allocated(), 0);
        while unchanged < 20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let now = allocated();
            unchanged = if now.abs_diff(last) > 16 * 1024 { 0 } else { unchanged + 1 };
            last = now;
        }
        last
    };
    tokio::time::timeout(TIMEOUT, stable).await.unwrap()
}

/// How a client misbehaves.
#[derive(Clone, Copy, Debug)]
enum Client {
    /// The client sends requests and reads no responses.
    DoesNotRead,
    /// The client reads one byte of each response.
    ReadsOneByte,
    /// The client withholds the last byte of each request.
    DoesNotEnd,
}

/// Sends `requests` on [`STREAMS`] streams. Returns the number of bytes that are held per stream.
async fn held(server: &TestServer, method: &MethodDescriptor, requests: &[Bytes], client: Client) -> usize {
    let before = settled().await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(u32::from(matches!(client, Client::ReadsOneByte)));
    let (sender, connection) = builder.handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut responses = Vec::new();
    let mut bodies = Vec::new();
    for (_, request) in (0..STREAMS).zip(requests.iter().cycle()) {
        // The server may have closed the connection by now.
        let Ok(mut sender) = sender.clone().ready().await else { break };
        let head = http::Request::post(format!("http://{}{}", server.address, requests::path(method)))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", format!("Bearer {TOKEN}"));
        let Ok((response, mut body)) = sender.send_request(head.body(()).unwrap(), false) else { break };
        let (piece, ends) = match client {
            Client::DoesNotEnd => (request.slice(..request.len() - 1), false),
            Client::DoesNotRead | Client::ReadsOneByte => (request.clone(), !method.is_client_streaming()),
        };
        // The server may have responded and closed the stream.
        let _ = body.send_data(piece, ends);
        responses.push(response);
        bodies.push(body);
    }
    let mut all_responses = Box::pin(join_all(responses));
    // An incomplete request gets no response. The short timeout only lets the server read what was sent.
    let timeout = if matches!(client, Client::DoesNotEnd) { Duration::from_millis(50) } else { TIMEOUT };
    let _responses = tokio::time::timeout(timeout, all_responses.as_mut()).await;
    let mut open = settled().await;
    // The server closes connections whose clients read nothing after a second.
    let closed = async {
        while open.saturating_sub(before) / STREAMS > MAX_HELD {
            open = settled().await;
        }
    };
    // If the server does not close the connection, the caller reports the memory that it holds.
    let _is_closed = tokio::time::timeout(Duration::from_secs(5), closed).await;
    connection.abort();
    drop((sender, bodies));
    open.saturating_sub(settled().await) / STREAMS
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_holds_more_than_64_kib() {
    let server = TestServer::start_with(MemoryRepository::new(), &config()).await;
    let api = server.api().await;
    let mut violations = Vec::new();
    for method in requests::methods() {
        let typical = Keys::create(&api, KEYS, new_key()).await;
        // Listings begin with the newest keys.
        let large = Keys::create(&api, KEYS, requests::largest_key()).await;
        let plain = requests::plain(&method, &typical);
        let of_plain = held(&server, &method, &plain, Client::DoesNotRead).await;
        let mut worst = (of_plain, "plain".to_owned());
        for case in requests::cases(&method, &typical, &large) {
            let clients = match case.kind {
                CaseKind::Valid => &[Client::DoesNotRead, Client::ReadsOneByte][..],
                CaseKind::Usual => &[Client::DoesNotRead],
                // Errors have no body that could stay unread.
                CaseKind::Full => &[Client::DoesNotEnd],
            };
            for client in clients {
                let bytes = held(&server, &method, &case.requests, *client).await;
                let name = format!("{} ({client:?})", case.name);
                if bytes > MAX_HELD {
                    violations.push(format!("{}, {name}: {bytes} bytes", method.full_name()));
                }
                worst = worst.max((bytes, name));
            }
        }
        println!("{:45} {of_plain:6} {:6} {}", method.full_name(), worst.0, worst.1);
    }
    assert!(violations.is_empty(), "{violations:#?}");
}
