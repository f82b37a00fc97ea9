//! Calls `Validate` as fast as a server answers, with a different one of many keys per call, and checks every
//! response.
//!
//!     validate_load ADDRESS SECONDS CONNECTIONS STREAMS < secrets
//!
//! `h2load` sends the same message, and therefore the same key, in every call. This generator writes HTTP/2
//! frames that were prepared in advance, and parses responses only enough to recognize valid ones, because it
//! shares the machine with the server and should use as little CPU as possible. It prints calls per second,
//! its own CPU time per call in microseconds, and the median and 99th percentile of the latency in
//! milliseconds.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a benchmark measures and prints"
)]

use std::collections::HashMap;
use std::io::{BufRead as _, stdin};
use std::rc::Rc;
use std::time::{Duration, Instant};

use keyvouch::grpc::pb::ValidateRequest;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

/// Distance in the list between the keys of consecutive calls.
const STRIDE: usize = 31;
/// First bytes of a response with `valid = true`, after the head of the message: the field 1, a varint, 1.
const VALID: &[u8] = &[0x08, 0x01];
/// Size of the head of a message in bytes: the compression flag and the length.
const MESSAGE_HEAD: usize = 5;

// Frame types (RFC 9113, section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const FRAME_HEAD: usize = 9;
/// Maximum size of a window, and the initial size of a connection's window.
const WINDOW: u32 = (1 << 31) - 1;
const FIRST_WINDOW: u32 = 65_535;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo bench` and `cargo test` run this program without arguments, so it has to exit successfully.
    let [address, seconds, connections, streams] = arguments.as_slice() else {
        println!("usage: validate_load ADDRESS SECONDS CONNECTIONS STREAMS < secrets");
        return;
    };
    let duration = Duration::from_secs(seconds.parse().unwrap());
    let streams: usize = streams.parse().unwrap();
    let keys: Rc<[Vec<u8>]> = stdin().lock().lines().map(|secret| message(secret.unwrap())).collect();
    assert!(!keys.is_empty(), "no secrets on standard input");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let latencies = LocalSet::new().block_on(&runtime, async {
        let end = Instant::now() + duration;
        let mut connections_running = Vec::new();
        for number in 0..connections.parse::<usize>().unwrap() {
            let connection = Connection::open(address, Rc::clone(&keys), number * 7_919).await;
            connections_running.push(tokio::task::spawn_local(connection.call_until(end, streams)));
        }
        let mut latencies = Vec::new();
        for connection in connections_running {
            latencies.extend(connection.await.unwrap());
        }
        latencies
    });
    report(latencies, duration);
}

/// Returns the message of a call, with its head.
fn message(secret: String) -> Vec<u8> {
    let message = ValidateRequest { secret, ..ValidateRequest::default() }.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0][..], &length, &message].concat()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

struct Connection {
    socket: TcpStream,
    keys: Rc<[Vec<u8>]>,
    at: usize,
    next_stream: u32,
    /// The encoded header block of the next call.
    headers: Vec<u8>,
    /// The start time of each call in flight, and whether its response was valid so far.
    running: HashMap<u32, (Instant, bool)>,
    /// Number of bytes that the server's window allows.
    room: i64,
    /// Number of bytes received since the last window update.
    received: u32,
    to_send: Vec<u8>,
    latencies: Vec<Duration>,
}

impl Connection {
    async fn open(address: &str, keys: Rc<[Vec<u8>]>, at: usize) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let mut to_send = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        to_send.extend(frame(SETTINGS, 0, 0, &[]));
        to_send.extend(frame(WINDOW_UPDATE, 0, 0, &(WINDOW - FIRST_WINDOW).to_be_bytes()));
        Self {
            socket,
            keys,
            at,
            next_stream: 1,
            headers: first_headers(address),
            running: HashMap::new(),
            room: FIRST_WINDOW.into(),
            received: 0,
            to_send,
            latencies: Vec::new(),
        }
    }

    /// Keeps `streams` calls in flight until `end`. Returns the latency of each call.
    async fn call_until(mut self, end: Instant, streams: usize) -> Vec<Duration> {
        let mut buffer = Vec::with_capacity(256 * 1024);
        loop {
            let now = Instant::now();
            while now < end && self.running.len() < streams {
                self.call(now);
            }
            if self.running.is_empty() {
                return self.latencies;
            }
            self.socket.write_all(&self.to_send).await.unwrap();
            self.to_send.clear();
            assert_ne!(
                self.socket.read_buf(&mut buffer).await.unwrap(),
                0,
                "the server ended the connection"
            );
            let taken = self.take(&buffer);
            buffer.drain(..taken);
        }
    }

    fn call(&mut self, now: Instant) {
        self.at = (self.at + STRIDE) % self.keys.len();
        let message = &self.keys[self.at];
        self.room -= i64::try_from(message.len()).unwrap();
        assert!(self.room >= 0, "the server gives no room");
        self.to_send.extend(frame(HEADERS, END_HEADERS, self.next_stream, &self.headers));
        self.to_send.extend(frame(DATA, END_STREAM, self.next_stream, message));
        self.running.insert(self.next_stream, (now, false));
        self.next_stream += 2;
        self.headers = later_headers();
    }

    /// Processes the complete frames in `bytes`. Returns the size of these frames in bytes.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while let Some((head, rest)) = bytes[taken..].split_at_checked(FRAME_HEAD) {
            let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
            let length = usize::try_from(number(&[0, head[0], head[1], head[2]])).unwrap();
            let Some(payload) = rest.get(..length) else { break };
            let (kind, flags, stream) = (head[3], head[4], number(&head[5..]));
            taken += FRAME_HEAD + length;
            match kind {
                DATA => {
                    self.received += u32::try_from(length).unwrap();
                    assert_eq!(payload.get(MESSAGE_HEAD..MESSAGE_HEAD + 2), Some(VALID), "not valid");
                    self.running.get_mut(&stream).unwrap().1 = true;
                }
                HEADERS if flags & END_STREAM != 0 => {
                    let (begun, is_right) = self.running.remove(&stream).unwrap();
                    assert!(is_right, "an answer without a message");
                    self.latencies.push(begun.elapsed());
                }
                WINDOW_UPDATE if stream == 0 => self.room += i64::from(number(payload)),
                SETTINGS if flags & ACK == 0 => self.to_send.extend(frame(SETTINGS, ACK, 0, &[])),
                PING if flags & ACK == 0 => self.to_send.extend(frame(PING, ACK, 0, payload)),
                GOAWAY => panic!("the server wants no more calls"),
                _ => {}
            }
        }
        if self.received > WINDOW / 2 {
            self.to_send.extend(frame(WINDOW_UPDATE, 0, 0, &self.received.to_be_bytes()));
            self.received = 0;
        }
        taken
    }
}

/// Returns the header block of the first call (RFC 7541). Four of its fields are new, and the server adds
/// them to its table.
fn first_headers(address: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    // :method POST and :scheme http are in the static table, and so are the names :path, :authority and
    // content-type.
    [
        vec![0x83, 0x86, 0x44],
        text("/keyvouch.v1.Validator/Validate"),
        vec![0x41],
        text(address),
        vec![0x5f],
        text("application/grpc"),
        vec![0x40],
        text("te"),
        text("trailers"),
    ]
    .concat()
}

/// Returns the header block of later calls, which refers to fields in the table by their indexes, from 65 for
/// the first added field down to 62 for the last one.
fn later_headers() -> Vec<u8> {
    vec![0x83, 0x86, 0xc1, 0xc0, 0xbf, 0xbe]
}

fn report(mut latencies: Vec<Duration>, duration: Duration) {
    latencies.sort_unstable();
    let calls = latencies.len();
    let percentile = |percent: usize| latencies[(calls - 1) * percent / 100].as_secs_f64() * 1e3;
    let (calls, seconds) = (f64::from(u32::try_from(calls).unwrap()), duration.as_secs_f64());
    let cpu = cpu_seconds() / calls * 1e6;
    println!("{:.0} {cpu:.1} {:.2} {:.2}", calls / seconds, percentile(50), percentile(99));
}

/// Returns the user and system time of this process. Linux reports it in hundredths of a second.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // The name may contain spaces. The text after it begins with field 3.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
}
