//! Connections, from the accepted socket to the last byte of the last response.
//!
//! `limiter` decides whether a connection is accepted, and closes connections to make room. `io` is the socket,
//! `handshake` begins it with TLS and HTTP/2, `first_bytes` and `wrong_protocols` recognise and log clients of other
//! protocols, `driver` runs HTTP/2 on it and ends it, and `service` handles its requests: `http_gate` rejects requests that
//! are not calls, `request_body` and `response_body` track the progress of calls in `activity`, and `read_ahead`
//! reads streams ahead of their handler. `state` and `unread` have the counts that the limiter reads.

mod activity;
mod driver;
mod first_bytes;
mod handshake;
mod http_gate;
mod io;
mod limiter;
mod read_ahead;
mod request_body;
mod response_body;
mod service;
mod state;
mod unread;
mod wrong_protocols;

pub(super) use self::driver::ConnectionDriver;
pub(super) use self::io::{Accepted, WorkerSlot};
pub(super) use self::limiter::{Client, ConnectionLimiter, ConnectionPermit, LimitReached};
pub(super) use self::wrong_protocols::WrongProtocolLog;
