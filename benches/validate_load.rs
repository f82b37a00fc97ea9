//! Calls `Validate` as fast as a server answers, each call with another of many keys, and checks every answer.
//!
//!     validate_load ADDRESS SECONDS CONNECTIONS STREAMS < secrets
//!
//! A generator of its own: `h2load` sends one message again and again, which is one key. It speaks HTTP/2 by the crate
//! `h2` on one thread, without a gRPC stack, to leave the machine to the server. Prints calls a second, its own CPU time
//! for each call in microseconds, and the median and the 99th percentile of the latency in milliseconds.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a benchmark measures and prints"
)]

use std::io::{BufRead as _, stdin};
use std::rc::Rc;
use std::time::{Duration, Instant};

use h2::client::SendRequest;
use http::Request;
use keyvouch::grpc::pb::{ValidateRequest, ValidateResponse};
use prost::Message as _;
use prost::bytes::{BufMut as _, Bytes, BytesMut};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

/// What stands before a message: not compressed, and its length.
const FRAME_HEAD: usize = 5;
/// How far apart in the list the keys of one caller are.
const STRIDE: usize = 31;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo bench` and `cargo test` run it without arguments: there is nobody to call then.
    let [address, seconds, connections, streams] = arguments.as_slice() else {
        println!("usage: validate_load ADDRESS SECONDS CONNECTIONS STREAMS < secrets");
        return;
    };
    let duration = Duration::from_secs(seconds.parse().unwrap());
    let keys: Rc<[Bytes]> = stdin().lock().lines().map(|secret| frame(secret.unwrap())).collect();
    assert!(!keys.is_empty(), "no secrets on standard input");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let latencies = LocalSet::new().block_on(&runtime, async {
        let mut callers = Vec::new();
        let end = Instant::now() + duration;
        for connection in 0..connections.parse::<usize>().unwrap() {
            let client = connect(address).await;
            for stream in 0..streams.parse::<usize>().unwrap() {
                let first = connection * 7_919 + stream * 104_729;
                let url = format!("http://{address}/keyvouch.v1.Validator/Validate");
                callers.push(tokio::task::spawn_local(call_until(
                    end,
                    client.clone(),
                    url,
                    Rc::clone(&keys),
                    first,
                )));
            }
        }
        let mut latencies = Vec::new();
        for caller in callers {
            latencies.extend(caller.await.unwrap());
        }
        latencies
    });
    report(latencies, duration);
}

fn frame(secret: String) -> Bytes {
    let message = ValidateRequest { secret, ..ValidateRequest::default() };
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.encoded_len().try_into().unwrap());
    message.encode(&mut frame).unwrap();
    frame.freeze()
}

async fn connect(address: &str) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::task::spawn_local(async move {
        // It ends with an error when the callers are gone.
        let _ = connection.await;
    });
    client
}

/// Calls, one call after the other, until `end`; returns how long each took.
async fn call_until(
    end: Instant,
    client: SendRequest<Bytes>,
    url: String,
    keys: Rc<[Bytes]>,
    first: usize,
) -> Vec<Duration> {
    let mut latencies = Vec::new();
    let mut at = first;
    loop {
        let begun = Instant::now();
        if begun >= end {
            return latencies;
        }
        at = (at + STRIDE) % keys.len();
        let mut client = client.clone().ready().await.unwrap();
        let request = Request::post(&url)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (response, mut body) = client.send_request(request, false).unwrap();
        body.send_data(keys[at].clone(), true).unwrap();
        let mut answer = response.await.unwrap().into_body();
        let mut received = BytesMut::new();
        while let Some(data) = answer.data().await {
            let data = data.unwrap();
            answer.flow_control().release_capacity(data.len()).unwrap();
            received.extend_from_slice(&data);
        }
        let trailers = answer.trailers().await.unwrap();
        let status = trailers.as_ref().and_then(|it| it.get("grpc-status")).map(|it| it.as_bytes().to_vec());
        assert_eq!(status.as_deref(), Some(b"0".as_slice()), "{trailers:?}");
        let answer = ValidateResponse::decode(&received[FRAME_HEAD..]).unwrap();
        assert!(answer.valid, "{answer:?}");
        latencies.push(begun.elapsed());
    }
}

fn report(mut latencies: Vec<Duration>, duration: Duration) {
    latencies.sort_unstable();
    let calls = latencies.len();
    let percentile = |percent: usize| latencies[(calls - 1) * percent / 100].as_secs_f64() * 1e3;
    let (calls, seconds) = (f64::from(u32::try_from(calls).unwrap()), duration.as_secs_f64());
    let cpu = cpu_seconds() / calls * 1e6;
    println!("{:.0} {cpu:.1} {:.2} {:.2}", calls / seconds, percentile(50), percentile(99));
}

/// User and system time of this process, which Linux tells in hundredths of a second.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // The name may hold spaces; what follows it begins with field 3.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
}
