//! Lists 1,000,000 keys from SQLite, and prints the duration and the growth of the process's memory.
//!
//! The rows are written directly into the table. A million acknowledged changes, each synced to the disk,
//! would measure the disk instead.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a benchmark measures and prints"
)]

use std::time::Instant;

use futures_util::TryStreamExt as _;
use keyvouch::domain::{KeyFilter, OwnerId, Timestamp};
use keyvouch::repository::{KeyRepository as _, PageRequest, SqlOptions, SqlRepository};
use sea_orm::{ConnectionTrait as _, Database, DbBackend, Statement};

const KEYS: usize = 1_000_000;

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kv.db");
    let repository = SqlRepository::open_sqlite(&path, SqlOptions::default()).await.unwrap();
    repository.migrate().await.unwrap();
    let database = Database::connect(format!("sqlite://{}", path.display())).await.unwrap();
    let fill = format!(
        "with recursive n(i) as (select 1 union all select i + 1 from n where i < {KEYS}) \
         insert into api_key select randomblob(16), randomblob(32), 'kv_', 'key ' || i, '', 'owner', '[\"read\"]', \
         '{{\"k\": \"v\"}}', 1700000000000000 + i, 1700000000000000 + i, null, null, null, null, null, i, null, null from n"
    );
    database.execute_raw(Statement::from_string(DbBackend::Sqlite, fill)).await.unwrap();
    database.close().await.unwrap();

    let owner = OwnerId::parse("owner_id", "owner").unwrap();
    // SQLite's page cache is bounded and is not measured, so it is filled before the measurement begins.
    let filter = KeyFilter::all(Timestamp::MIN);
    let mut keys = repository.list_by_owner(&owner, &filter);
    for _ in 0..KEYS / 10 {
        keys.try_next().await.unwrap();
    }
    drop(keys);

    let before = resident_kib();
    let (begun, mut count, mut peak) = (Instant::now(), 0, before);
    let mut keys = repository.list_by_owner(&owner, &filter);
    while keys.try_next().await.unwrap().is_some() {
        count += 1;
        if count % 10_000 == 0 {
            peak = peak.max(resident_kib());
        }
    }
    assert_eq!(count, KEYS);
    println!(
        "streamed {count} keys in {:.1?}; memory grew by at most {} KiB",
        begun.elapsed(),
        peak - before
    );

    let request = PageRequest { owner_id: None, after: None, limit: 1_000 };
    let begun = Instant::now();
    assert_eq!(repository.list_page(&request).await.unwrap().len(), 1_000);
    println!("a page of 1000 over all owners in {:.1?}", begun.elapsed());
}

/// Returns the resident memory of the process in KiB.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
