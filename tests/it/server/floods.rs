//! Tests that other clients are served while some abuse HTTP/2, whatever happens to the connections of those.

use std::time::Duration;

use keyvouch::conformance::api::new_key;
use keyvouch::grpc::pb;
use keyvouch::repository::MemoryRepository;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{TestServer, config};

/// Duration of a flood.
const LENGTH: Duration = Duration::from_millis(1_500);
/// Number of connections that take part.
const CLIENTS: usize = 4;

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const DATA: u8 = 0;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Returns a frame (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Returns the headers of a call of `Validate`, without compression (RFC 7541).
fn headers() -> Vec<u8> {
    let text = |text: &str| [vec![u8::try_from(text.len()).unwrap()], text.as_bytes().to_vec()].concat();
    // :method POST and :scheme http, then :path, :authority, content-type and te as literals.
    let mut block = vec![0x83, 0x86, 0x04];
    block.extend(text("/keyvouch.v1.Validator/Validate"));
    block.push(0x01);
    block.extend(text("test"));
    block.extend([0x0f, 0x10]);
    block.extend(text("application/grpc"));
    block.push(0x00);
    block.extend(text("te"));
    block.extend(text("trailers"));
    block
}

/// Returns the frames that a client sends repeatedly. The number grows by one each time.
type Flood = fn(u32) -> Vec<u8>;

fn rapid_reset(number: u32) -> Vec<u8> {
    let stream = 2 * number + 1;
    [frame(HEADERS, END_HEADERS, stream, &headers()), frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())]
        .concat()
}

fn continuation(number: u32) -> Vec<u8> {
    let field = [&[0x00, 0x7f, 0x81, 0x01][..], &[b'x'; 256], &[0x00]].concat();
    match number {
        0 => frame(HEADERS, 0, 1, &headers()),
        _ => frame(CONTINUATION, 0, 1, &field),
    }
}

fn ping(number: u32) -> Vec<u8> {
    frame(PING, 0, 0, &u64::from(number).to_be_bytes())
}

fn settings(_: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])
}

fn empty_data(number: u32) -> Vec<u8> {
    match number {
        0 => frame(HEADERS, END_HEADERS, 1, &headers()),
        _ => frame(DATA, 0, 1, &[]),
    }
}

/// Sends `flood` until the server closes the connection. Responses are read, as a client would.
async fn send_once(server: &TestServer, flood: Flood) -> std::io::Result<()> {
    let stream = TcpStream::connect(server.address).await?;
    let (mut answers, mut requests) = stream.into_split();
    let reading = async { while let Ok(1..) = answers.read(&mut [0; 8_192]).await {} };
    let sending = async {
        let begin = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &[])].concat();
        requests.write_all(&begin).await?;
        for number in 0.. {
            let burst: Vec<_> = (0..64).flat_map(|of_burst| flood(number * 64 + of_burst)).collect();
            requests.write_all(&burst).await?;
        }
        Ok(())
    };
    tokio::select! {
        () = reading => Ok(()),
        sent = sending => sent,
    }
}

/// Sends `flood` repeatedly for a while. Returns how often the server closed the connection.
async fn send(server: &TestServer, flood: Flood) -> u32 {
    let mut ended = 0;
    let again = async {
        loop {
            // The way in which the server closes the connection does not matter.
            let _ = send_once(server, flood).await;
            ended += 1;
        }
    };
    let _: Result<(), _> = tokio::time::timeout(LENGTH, again).await;
    ended
}

/// The expected effect of a flood on its connection.
#[derive(PartialEq)]
enum Outcome {
    /// The server closes the connection.
    Closed,
    /// The connection may stay open, because it only costs its own time.
    Open,
}

async fn other_clients_are_served(flood: Flood, outcome: Outcome) {
    let server = TestServer::start_with(MemoryRepository::new(), &config()).await;
    let api = server.api().await;
    let (_, secret) = api.create(new_key()).await;
    let mut calls = 0_u32;
    let flooding = futures_util::future::join_all((0..CLIENTS).map(|_| send(&server, flood)));
    let calling = async {
        loop {
            let call = tokio::time::timeout(Duration::from_secs(10), api.reason(&secret));
            assert_eq!(call.await.unwrap(), pb::Reason::Valid);
            calls += 1;
        }
    };
    let ended: u32 = tokio::select! {
        ended = flooding => ended.into_iter().sum(),
        () = calling => unreachable!("calls are made without end"),
    };
    if outcome == Outcome::Closed {
        assert!(ended > 0, "the server closed none of these connections");
    }
    assert!(calls >= 10, "only {calls} calls were answered during the flood");
    // New connections are served as well.
    assert_eq!(server.api().await.reason(&secret).await, pb::Reason::Valid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_resets_does_not_affect_other_clients() {
    other_clients_are_served(rapid_reset, Outcome::Closed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_continuations_does_not_affect_other_clients() {
    other_clients_are_served(continuation, Outcome::Closed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_pings_does_not_affect_other_clients() {
    other_clients_are_served(ping, Outcome::Open).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_settings_does_not_affect_other_clients() {
    other_clients_are_served(settings, Outcome::Open).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_empty_data_frames_does_not_affect_other_clients() {
    other_clients_are_served(empty_data, Outcome::Open).await;
}
