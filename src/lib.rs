//! Keyvouch: a gRPC service that issues and validates API keys for other services.
//!
//! It answers one question: *may the bearer of this API key do this, now?* The answer is allowed, denied with
//! a reason, or an error if it could not be decided. An error is never reported as a denial.
//!
//! # Embedding
//!
//! The program `keyvouch` is this crate with a command line. A program of your own can serve the same API, over a
//! backend of its own if it has one (see [`repository`]):
//!
//! ```no_run
//! use keyvouch::app::{App, Surroundings};
//! use keyvouch::config::Sources;
//! use keyvouch::repository::MemoryRepository;
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let settings = Sources { environment: std::env::vars().collect(), ..Sources::default() }.load()?.settings;
//!     let app = App::with_backend(&settings, Surroundings::default(), MemoryRepository::new()).await?;
//!     for address in app.addresses() {
//!         println!("listening on {address}");
//!     }
//!     app.run(async { tokio::signal::ctrl_c().await.unwrap_or_default() }).await?;
//!     Ok(())
//! }
//! ```
//!
//! # Modules
//!
//! ```text
//! domain ← repository ← cache ← service ← grpc ← server ← app ← cli
//! ```
//!
//! Each module uses modules to its left, never one to its right. `docs/architecture.md` lists the
//! dependencies of each module, and a test compares that list with the source code.
//!
//! - [`domain`] has the rules: what a key is and when it may be used. Time and randomness are parameters.
//! - `telemetry` has logs, metrics and traces.
//! - [`repository`] has the storage contract, the backends, and a guide to writing a backend.
//! - [`cache`] has caches in front of a repository, and the rules by which they honour revocations.
//! - `service` has the logic of `Validator` and `KeyStore`, independent of any protocol.
//! - [`grpc`] has messages, handlers, credentials and the one table from errors to statuses. [`grpc::pb`] has
//!   the generated clients.
//! - `server` has listeners, one single-threaded runtime per core, and graceful shutdown.
//! - [`config`] has the settings.
//! - [`app`] is the composition root. It alone chooses the backend of a server.
//! - `redis` has connections to Redis, for the backend and for the cache.
//! - `cli` has the commands.
//! - `conformance` (feature `conformance`) has test suites for backends, caches and servers.
//!
//! `cli`, `redis`, `server`, `service` and `telemetry` are not part of the public API.
//!
//! # The path of one `Validate` call
//!
//! 1. A worker thread reads the call from its connection. `server::CallLayer` gives it a request id and a
//!    span.
//! 2. `grpc::ValidatorHandler` converts the message into domain types.
//! 3. `service::ValidatorService` checks prefix, length and checksum, without I/O. It hashes the key and
//!    looks the hash up in a `cache::KeySource`, which is the caches and the repository behind them. Then
//!    it judges the record with [`domain::judge`] at the current time.
//! 4. The verdict becomes a response. A failure becomes an error status, never a verdict.

pub mod app;
pub mod cache;
mod cli;
pub mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod domain;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod grpc;
mod redis;
pub mod repository;
mod server;
mod service;
mod telemetry;

/// Runs the command `keyvouch`. Not part of the public API.
#[doc(hidden)]
#[must_use]
pub fn main() -> std::process::ExitCode {
    cli::main()
}
