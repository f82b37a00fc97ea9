//! All integration tests in one binary, because linking is slow.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod api;
mod architecture;
mod cache;
mod cached;
mod chart;
mod clients;
#[path = "../../examples/custom_backend.rs"]
#[expect(dead_code, unreachable_pub, reason = "its `main` is run as a program")]
mod custom_backend;
mod databases;
mod documents;
mod fixtures;
mod gateways;
mod imports;
#[path = "../../examples/journal_backend/main.rs"]
#[expect(dead_code, unreachable_pub, reason = "its `main` is run as a program")]
mod journal_backend;
mod plans;
mod process;
mod prove;
mod proxies;
mod redis_faults;
mod redis_listings;
mod redis_permissions;
mod redis_resharding;
mod redis_servers;
mod redis_setups;
mod redis_start;
mod repository;
mod server;
mod signals;
mod sql;
mod sql_faults;
mod sql_servers;
mod sqlite_faults;
mod suites;
mod support;
