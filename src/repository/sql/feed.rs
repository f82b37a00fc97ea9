//! The change feed and the pruning of events.

use sea_orm::sea_query::SelectStatement;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, Statement};

use super::error::{from_db, is_lock_conflict};
use super::pool::Pool;
use super::query;
use super::row::{feed_item, listed_event};
use super::tables::Tables;
use super::transaction::read_head;
use crate::domain::{Revision, Timestamp};
use crate::repository::stored::timestamp;
use crate::repository::{
    Changes, Cursor, ErrorKind, EventPageRequest, FeedItem, FeedPosition, ListedEvent, RecentChanges,
    RepositoryError, Result,
};

/// Maximum number of events that one transaction deletes.
const PRUNE_BATCH: usize = 1_000;

pub(super) async fn page(
    pool: &Pool,
    tables: &Tables,
    request: &EventPageRequest,
) -> Result<Vec<ListedEvent>> {
    let rows = pool.query_limited(&query::event_page(tables, request)).await?;
    rows.iter().map(listed_event).collect()
}

async fn read(connection: &impl ConnectionTrait, select: &SelectStatement) -> Result<Vec<FeedItem>> {
    let rows = connection.query_all(select).await.map_err(from_db)?;
    rows.iter().map(feed_item).collect()
}

/// Runs `read` on a server that accepts changes. A demoted primary would never return any further events.
///
/// Returns `None` if the server rejects changes. This is checked last, on the same connection, because a
/// server that accepts changes now also did when `read` ran.
pub(super) async fn of_the_primary<T>(
    pool: &Pool,
    tables: &Tables,
    read: impl AsyncFnOnce(&DatabaseTransaction) -> Result<T>,
) -> Result<Option<T>> {
    let transaction = pool.begin().await?;
    let outcome = read(&transaction).await?;
    if pool.transaction_settings.is_some() {
        // A session that is shared may lack `row_security = off`, so a policy could hide keys from lookups. This
        // statement fails then, and so does the poll.
        transaction.query_all(&query::no_key(tables)).await.map_err(from_db)?;
    }
    let takes_changes = takes_changes(&transaction).await?;
    transaction.commit().await.map_err(from_db)?;
    Ok(takes_changes.then_some(outcome))
}

async fn takes_changes(connection: &impl ConnectionTrait) -> Result<bool> {
    ask(connection, "SELECT NOT pg_is_in_recovery()", "SELECT NOT @@global.read_only").await
}

/// Returns whether the server accepts changes from sessions like this one. A primary may reject them, too,
/// for example when its disk is full.
pub(super) async fn is_writable(connection: &impl ConnectionTrait) -> Result<bool> {
    let of_postgres = "SELECT current_setting('transaction_read_only') = 'off'";
    ask(connection, of_postgres, "SELECT NOT @@global.read_only").await
}

async fn ask(connection: &impl ConnectionTrait, of_postgres: &str, of_mysql: &str) -> Result<bool> {
    let question = match connection.get_database_backend() {
        DbBackend::Postgres => of_postgres,
        DbBackend::MySql => of_mysql,
        _ => return Ok(true),
    };
    let question = Statement::from_string(connection.get_database_backend(), question);
    let row = connection.query_one_raw(question).await.map_err(from_db)?;
    let row = row.ok_or_else(|| {
        RepositoryError::new(ErrorKind::Internal, "the database server returned no row for a setting")
    })?;
    row.try_get_by_index(0).map_err(from_db)
}

/// Returns the newest events and the position after them.
pub(super) async fn recent_changes(
    connection: &impl ConnectionTrait,
    tables: &Tables,
    limit: usize,
) -> Result<RecentChanges> {
    let newest = EventPageRequest { key_id: None, owner_id: None, after: None, limit };
    let mut events = read(connection, &query::event_page(tables, &newest)).await?;
    events.reverse();
    // Read the head last. Without any event, changes up to it are not in the feed.
    let head = read_head(connection, tables).await?;
    Ok(RecentChanges::of(events, head))
}

/// Returns the events after `position`. The event at the position is read again. If it is missing or another
/// one, events after it were pruned or the backend was rewound.
pub(super) async fn changes(
    connection: &impl ConnectionTrait,
    tables: &Tables,
    position: Option<&FeedPosition>,
    limit: usize,
) -> Result<Changes> {
    let Some(position) = position else {
        let items = read(connection, &query::events_from(tables, Revision::NONE, limit)).await?;
        return Ok(Changes::of(None, items));
    };
    let events = match position.cursor(0) {
        Cursor::Start { missing } => {
            // Read the head first. The events of all changes up to it are visible when the events are read.
            let head = read_head(connection, tables).await?;
            let events = read(connection, &query::events_from(tables, Revision::NONE, limit)).await?;
            if !Cursor::is_whole_after(missing, events.first().map(|first| first.change().revision), head) {
                return Err(ErrorKind::PositionLost.into());
            }
            events
        }
        cursor @ Cursor::Event { revision, .. } => {
            let mut events = read(connection, &query::events_from(tables, revision, limit + 1)).await?;
            if events.first().is_none_or(|first| !cursor.is(first.change())) {
                return Err(ErrorKind::PositionLost.into());
            }
            events.remove(0);
            events
        }
    };
    Ok(Changes::of(Some(position), events))
}

/// Deletes one batch of the events from before `before`, oldest first, but never the newest of all, by which
/// followers detect missing events. Returns the number of deleted events, or `None` if another process is
/// pruning.
pub(super) async fn prune_batch(pool: &Pool, tables: &Tables, before: Timestamp) -> Result<Option<u64>> {
    let transaction = pool.begin().await?;
    // The process that locks the rows deletes them. On SQLite, it is the process that writes.
    let oldest = query::lock_oldest_events(tables, PRUNE_BATCH);
    let rows = match transaction.query_all(&oldest).await.map_err(from_db) {
        Err(error) if is_lock_conflict(&error) => return Ok(None),
        rows => rows?,
    };
    let mut last = None;
    let newest = read_head(&transaction, tables).await?;
    for row in rows {
        let revision = Revision::new(row.try_get_by_index(0).map_err(from_db)?);
        let at = timestamp("created_at", row.try_get_by_index(1).map_err(from_db)?)?;
        if at >= before || revision >= newest {
            break;
        }
        last = Some(revision);
    }
    let Some(last) = last else {
        // Roll back explicitly: a dropped transaction keeps its locks until the pool rolls it back, and the
        // next pruner would see them as held.
        transaction.rollback().await.map_err(from_db)?;
        return Ok(Some(0));
    };
    let deleted = transaction.execute(&query::delete_events_through(tables, last)).await.map_err(from_db)?;
    transaction.commit().await.map_err(from_db)?;
    Ok(Some(deleted.rows_affected()))
}
