//! The suites that every backend and every server has to pass. Feature `conformance`.
//!
//! - [`repository`]: the contract of [`KeyRepository`](crate::repository::KeyRepository), for authors of backends:
//!   [`repository_conformance!`](crate::repository_conformance) makes one test a clause.
//! - [`cache`]: the contract of [`KeyCache`](crate::cache::KeyCache), for authors of caches:
//!   [`cache_conformance!`](crate::cache_conformance).
//! - [`api`]: the contract of the two services, through their generated clients:
//!   [`api_conformance!`](crate::api_conformance).
//!
//! Clauses panic when they don't hold; their names say what does not.

#![expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a clause fails by panicking: these are tests"
)]

use std::time::Duration;

pub mod api;
pub mod cache;
pub mod repository;

/// How long one clause may take: far longer than it needs on the slowest backend.
const LIMIT: Duration = Duration::from_mins(5);

/// Runs one clause. It panics after five minutes, so that a backend that never gets where a clause waits for fails it.
pub async fn within_limit(clause: impl Future<Output = ()>) {
    tokio::time::timeout(LIMIT, clause).await.unwrap();
}
