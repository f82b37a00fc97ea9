//! Entry points of the fuzz targets in `fuzz/`. Each passes bytes to code that handles external input, which
//! must not panic or hang.
//!
//! The tests of this module run the same code on random bytes and on all inputs in `fuzz/corpus`.

mod server;
#[cfg(test)]
mod tests;

use crate::config::Config;
use crate::domain::{KeyFilter, Timestamp};
use crate::repository::EventPageRequest;
use crate::service::ListRequest;

pub use server::Server;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Parses a key string, as `Validate` and `authorization` do. Checks that an accepted string is not longer
/// than keys are.
#[expect(clippy::missing_panics_doc, reason = "a fuzzer detects a panic")]
pub fn key(bytes: &[u8]) {
    let format = Config::default().parse().unwrap_or_else(|error| panic!("{error}")).keys;
    let secret = text(bytes);
    if format.parse(secret.clone()).is_some() {
        assert!(secret.is_ascii() && secret.len() < 128, "{secret}");
    }
}

/// Decodes a page token of each listing.
pub fn page_token(bytes: &[u8]) {
    let token = text(bytes);
    let keys = ListRequest { owner_id: None, filter: KeyFilter::all(Timestamp::MIN), after: None, limit: 1 };
    let events = EventPageRequest { key_id: None, owner_id: None, after: None, limit: 1 };
    let _ = crate::grpc::decode_page_token(&token, &keys);
    let _ = crate::grpc::decode_event_page_token(&token, &events);
}

/// Parses and checks a configuration file.
pub fn config(bytes: &[u8]) {
    if let Ok(config) = toml::from_str::<Config>(&text(bytes)) {
        let _ = config.parse();
    }
}

/// Parses a record of the Redis backend.
pub fn redis_record(bytes: &[u8]) {
    let _ = crate::repository::parse_redis_record(bytes);
}

/// Parses a row of an import file.
pub fn import_line(bytes: &[u8]) {
    crate::cli::read_import_line(&text(bytes));
}
