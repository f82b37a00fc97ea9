//! A custom backend with a change feed: a journal of JSON lines that several replicas on one machine share,
//! and a server that uses it. Start it twice, on two ports. A key that one replica revokes is denied by the
//! other one.
//!
//! ```sh
//! JOURNAL=keys.jsonl KEYVOUCH__SERVER__LISTEN=127.0.0.1:50051 cargo run --example journal_backend
//! JOURNAL=keys.jsonl KEYVOUCH__SERVER__LISTEN=127.0.0.1:50052 cargo run --example journal_backend
//! ```
//!
//! Every change is a line, which is synced before the change is acknowledged. A lock on the file orders the
//! changes of all replicas, and the order of the lines is the change feed. Each replica keeps all keys in
//! memory, and reads new lines before each answer.
//!
//! `state.rs` has the lines and the rules, `journal.rs` the file, and `backend.rs` the traits of a backend.

mod backend;
pub mod journal;
mod state;

use std::path::PathBuf;

use keyvouch::app::{App, Surroundings};
use keyvouch::config::Sources;
use keyvouch::repository::Backend;
use tokio::signal::unix::{SignalKind, signal};

use self::journal::Journal;

/// Runs a server like `keyvouch serve`, with settings from variables `KEYVOUCH__SECTION__FIELD`.
#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example talks to its reader")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::var_os("JOURNAL").map_or_else(|| "keys.jsonl".into(), PathBuf::from);
    let settings = Sources { environment: std::env::vars().collect(), ..Sources::default() }.load()?.settings;
    let backend = Backend::complete(Journal::open(&path)?);
    let app = App::with_backend(&settings, Surroundings::default(), backend).await?;
    for address in app.addresses() {
        println!("{} listens on {address}", app.backend());
    }
    let mut terminate = signal(SignalKind::terminate())?;
    app.run(async move {
        terminate.recv().await;
    })
    .await?;
    Ok(())
}
