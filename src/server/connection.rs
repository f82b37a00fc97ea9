//! Connections: limits, sockets, HTTP/2 and calls.

mod activity;
mod driver;
mod http_gate;
mod io;
mod limiter;
mod read_ahead;
mod request_body;
mod response_body;
mod service;
mod state;
mod unread;

pub(super) use self::driver::ConnectionDriver;
pub(super) use self::io::{Accepted, WorkerSlot};
pub(super) use self::limiter::{Client, ConnectionLimiter, ConnectionPermit, LimitReached};
