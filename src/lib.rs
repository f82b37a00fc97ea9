//! x
pub mod domain;
pub mod grpc;
pub mod repository;
pub mod service;
pub mod telemetry;
