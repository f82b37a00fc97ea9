//! Tests that need real database servers.

mod concurrency;
mod connections;
mod counts;
pub(crate) mod poolers;
mod records;
mod settings;

use keyvouch::domain::{ChangeContext, Timestamp};

fn now() -> Timestamp {
    Timestamp::from_micros(1_767_225_600_000_000).unwrap()
}

fn context() -> ChangeContext {
    ChangeContext::new("token:tests", "r", now())
}
