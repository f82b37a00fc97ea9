//! Keyvouch: a gRPC service that issues and validates API keys for other services.
//!
//! It answers one question: *may the bearer of this API key do this, now?* Allowed, denied with a reason, or could not
//! be decided; the three are never mixed.
//!
//! # The map
//!
//! ```text
//! main → cli → app ─┬→ server → grpc → service ─┬→ domain
//!                   └→ repository (backends) ───┘
//! ```
//!
//! - [`domain`]: what a key is and when it may be used. Pure: time and randomness are parameters.
//! - [`repository`]: where keys are kept; the contract, the backends, and a guide to write your own.
//! - [`service`]: the work of `Validator` and `KeyStore`, free of any protocol.
//! - [`grpc`]: messages, handlers, credentials and the one table from errors to statuses. [`grpc::pb`] has the
//!   generated clients.
//! - [`server`]: listeners, one single-threaded runtime a core, and an orderly end.
//! - [`config`], [`telemetry`], [`cli`]: settings, logs, commands.
//! - [`app`]: puts all of it together, and alone knows which backend there is.
//! - `conformance` (feature `conformance`): the suites that every backend and every server has to pass.
//!
//! # The walk of one Validate
//!
//! 1. A worker's thread reads the call from its connection; [`server::CallLayer`] gives it an id and a span.
//! 2. [`grpc::ValidatorHandler`] turns the message into domain types.
//! 3. [`service::ValidatorService`] checks prefix, length and checksum, which costs no I/O; hashes the key; asks
//!    [`repository::KeyRepository::get_by_hash`]; and lets [`domain::judge`] decide by the clock.
//! 4. The verdict becomes an answer; a failure becomes an error status, never a verdict.

pub mod app;
pub mod cache;
pub mod cli;
pub mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod domain;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod grpc;
mod redis;
pub mod repository;
pub mod server;
pub mod service;
pub mod telemetry;
