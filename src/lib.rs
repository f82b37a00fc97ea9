//! Keyvouch: a gRPC service that issues and validates API keys for other services.
//!
//! It answers one question: *may the bearer of this API key do this, now?* Allowed, denied with a reason, or could not
//! be decided; the three are never mixed.
//!
//! # Modules
//!
//! ```text
//! domain ← repository ← cache ← service ← grpc ← server ← app ← cli
//! ```
//!
//! Each module uses modules to its left, never one to its right. `docs/architecture.md` lists the uses of each, and a
//! test compares that table with the source code.
//!
//! - [`domain`] has the rules: what a key is and when it may be used. Pure: time and randomness are parameters.
//! - [`telemetry`] has log, metrics, traces.
//! - [`repository`] is storage: the contract, the backends, and a guide to write one.
//! - [`cache`] has caches in front of a repository, and the rules that keep a revocation true in spite of them.
//! - [`service`] has the work of `Validator` and `KeyStore`, independent of any protocol.
//! - [`grpc`] has messages, handlers, credentials and the one table from errors to statuses. [`grpc::pb`] has the generated clients.
//! - [`server`] has listeners, one single-threaded runtime per core, and graceful shutdown.
//! - [`config`] has settings.
//! - [`app`] is the composition root. It alone chooses a backend to serve.
//! - [`cli`] has commands.
//! - `conformance` (feature `conformance`) has test suites for every backend, every cache and every server.
//!
//! # The path of one `Validate` call
//!
//! 1. The thread of a worker reads the call from its connection. [`server::CallLayer`] gives it a request id and a span.
//! 2. [`grpc::ValidatorHandler`] converts the message into domain types.
//! 3. [`service::ValidatorService`] checks prefix, length and checksum, which costs no I/O; hashes the key; looks the hash up in a
//!    [`cache::KeySource`]: the caches, and the repository behind them; and judges the record with [`domain::judge`] at the current time.
//! 4. The verdict becomes an answer. A failure becomes an error status, never a verdict.

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
