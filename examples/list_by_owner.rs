//! Reads keys directly from the database of a Keyvouch server:
//!
//! ```sh
//! cargo run --example list_by_owner -- team-blue
//! ```

use std::env;
use std::error::Error;

use futures_util::TryStreamExt as _;
use keyvouch::domain::{Clock as _, KeyFilter, OwnerId, SystemClock};
use keyvouch::repository::{KeyRepository as _, Listed, SqlOptions, SqlRepository};

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "an example talks to its reader")]
async fn main() -> Result<(), Box<dyn Error>> {
    // A URL with a password belongs in the environment, because every process can see the arguments.
    let url = env::var("DATABASE_URL").unwrap_or_else(|_| "sqlite://keyvouch.db".to_owned());
    let owner = OwnerId::parse("owner", env::args().nth(1).ok_or("whose keys? give an owner")?)?;

    let repository = SqlRepository::open(&url, SqlOptions::default()).await?;
    let mut keys = repository.list_by_owner(&owner, &KeyFilter::all(SystemClock.now()));
    while let Some(key) = keys.try_next().await? {
        match key {
            Listed::Read(key) => println!("{} {}", key.id, key.name),
            Listed::Unreadable(place) => println!("{} can't be read", place.id),
        }
    }
    Ok(())
}
