//! All integration tests in one binary: links are slow.

mod api;
mod repository;
mod server;
mod support;
