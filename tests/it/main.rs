//! All integration tests in one binary: links are slow.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod api;
mod databases;
mod process;
mod repository;
mod server;
mod sql;
mod sql_servers;
mod support;
