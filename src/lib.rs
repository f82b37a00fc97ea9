//! x
pub mod app;
pub mod cli;
pub mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod domain;
pub mod grpc;
pub mod repository;
pub mod server;
pub mod service;
pub mod telemetry;
