//! The SQL statements.

use std::collections::BTreeMap;

use sea_orm::sea_query::{
    CaseStatement, DeleteStatement, Expr, ExprTrait as _, InsertStatement, LockBehavior, LockType,
    OnConflict, Order, Query, SelectStatement, UnionType, UpdateStatement,
};
use sea_orm::{Condition, DbBackend, StatementBuilder};
use uuid::Uuid;

use super::row::{KeyStub, NewEvent, event_values, key_values};
use super::tables::{Event, Head, Identity, Key, Request, RevokedHash, Tables, Usage};
use crate::domain::{ApiKey, KeyHash, KeyId, RequestDigest, Revision, RevokeReason, Timestamp};
use crate::repository::{ErrorKind, EventPageRequest, PagePosition, PageRequest, RepositoryError, Result};

fn keys(tables: &Tables) -> SelectStatement {
    Query::select().columns(Key::ALL).from(tables.key.clone()).take()
}

fn events(tables: &Tables) -> SelectStatement {
    Query::select().columns(Event::ALL).from(tables.event.clone()).take()
}

fn limit(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Returns the text of the statement that selects keys by one of `count` hashes, to be prepared.
pub(super) fn keys_by_hash(tables: &Tables, count: usize) -> String {
    let hashes = (0..count).map(|_| Vec::<u8>::new());
    let select = keys(tables).and_where(Expr::col(Key::Hash).is_in(hashes)).take();
    StatementBuilder::build(&select, &tables.backend).sql
}

pub(super) fn key_by_id(tables: &Tables, id: KeyId) -> SelectStatement {
    keys(tables).and_where(Expr::col(Key::Id).eq(id.as_uuid())).take()
}

/// Selects the identifying columns of the key `id`.
pub(super) fn key_stub(tables: &Tables, id: KeyId) -> SelectStatement {
    let columns = [Key::Id, Key::Hash, Key::OwnerId, Key::RevokedAt, Key::Revision, Key::Nonce];
    Query::select()
        .columns(columns)
        .from(tables.key.clone())
        .and_where(Expr::col(Key::Id).eq(id.as_uuid()))
        .take()
}

/// Writes the revocation of `key` and no other columns.
pub(super) fn revoke_stub(tables: &Tables, key: &KeyStub, reason: &RevokeReason) -> UpdateStatement {
    Query::update()
        .table(tables.key.clone())
        .values([
            (Key::RevokedAt, key.revoked_at.into()),
            (Key::RevokeReason, reason.as_str().into()),
            (Key::UpdatedAt, key.revoked_at.into()),
            (Key::Revision, key.revision.into()),
            (Key::Nonce, key.nonce.into()),
            (Key::NonceRevision, key.revision.into()),
        ])
        .and_where(Expr::col(Key::Id).eq(key.id))
        .take()
}

/// Stores the hash of a revoked key that is deleted.
pub(super) fn remember_revoked(tables: &Tables, hash: &[u8], now: Timestamp) -> Result<InsertStatement> {
    let once = OnConflict::column(RevokedHash::Hash).do_nothing_on([RevokedHash::Hash]).to_owned();
    Query::insert()
        .into_table(tables.revoked_hash.clone())
        .columns([RevokedHash::Hash, RevokedHash::DeletedAt])
        .values([hash.to_vec().into(), now.as_micros().into()])
        .map(|insert| insert.on_conflict(once).to_owned())
        .map_err(unbuildable)
}

/// Deletes the stored hash of a revoked key.
pub(super) fn forget_revoked(tables: &Tables, hash: &KeyHash) -> DeleteStatement {
    Query::delete()
        .from_table(tables.revoked_hash.clone())
        .and_where(Expr::col(RevokedHash::Hash).eq(hash.as_bytes().to_vec()))
        .take()
}

/// Selects the hashes among `keys` that belonged to keys that were revoked and deleted.
pub(super) fn revoked_among(tables: &Tables, keys: &[ApiKey]) -> SelectStatement {
    let hashes = keys.iter().map(|key| key.hash.as_bytes().to_vec());
    Query::select()
        .column(RevokedHash::Hash)
        .from(tables.revoked_hash.clone())
        .and_where(Expr::col(RevokedHash::Hash).is_in(hashes))
        .take()
}

/// Stores which key `request` created.
pub(super) fn insert_request(
    tables: &Tables,
    request: &RequestDigest,
    key: &ApiKey,
    now: Timestamp,
) -> Result<InsertStatement> {
    Query::insert()
        .into_table(tables.request.clone())
        .columns([Request::Digest, Request::KeyId, Request::CreatedAt])
        .values([request.as_bytes().to_vec().into(), key.id.as_uuid().into(), now.as_micros().into()])
        .map(|insert| insert.to_owned())
        .map_err(unbuildable)
}

/// Selects whether any key exists.
pub(super) fn any_key(tables: &Tables) -> SelectStatement {
    Query::select().expr(Expr::val(1)).from(tables.key.clone()).limit(1).take()
}

/// Selects no key. Fails if row-level security applies and must not hide rows.
pub(super) fn no_key(tables: &Tables) -> SelectStatement {
    Query::select().column(Key::Id).from(tables.key.clone()).limit(0).take()
}

/// Selects the key that `request` created.
pub(super) fn key_of_request(tables: &Tables, request: &RequestDigest) -> SelectStatement {
    Query::select()
        .column(Request::KeyId)
        .from(tables.request.clone())
        .and_where(Expr::col(Request::Digest).eq(request.as_bytes().to_vec()))
        .take()
}

/// Deletes requests from before `before`.
pub(super) fn delete_requests(tables: &Tables, before: Timestamp) -> DeleteStatement {
    Query::delete()
        .from_table(tables.request.clone())
        .and_where(Expr::col(Request::CreatedAt).lt(before.as_micros()))
        .take()
}

/// Selects the identity of this installation.
pub(super) fn identity(tables: &Tables) -> SelectStatement {
    Query::select()
        .column(Identity::Identity)
        .from(tables.identity.clone())
        .and_where(Expr::col(Identity::Id).eq(1))
        .take()
}

/// Inserts `identity`, unless an identity exists.
pub(super) fn insert_identity(tables: &Tables, identity: Uuid) -> Result<InsertStatement> {
    let once = OnConflict::column(Identity::Id).do_nothing_on([Identity::Id]).to_owned();
    Query::insert()
        .into_table(tables.identity.clone())
        .columns([Identity::Id, Identity::Identity])
        .values([1.into(), identity.into()])
        .map(|insert| insert.on_conflict(once).to_owned())
        .map_err(unbuildable)
}

/// Returns the statements that select the stored ids and hashes that are among those of `keys`.
pub(super) fn taken(tables: &Tables, keys: &[ApiKey]) -> [SelectStatement; 2] {
    let select = || Query::select().columns([Key::Id, Key::Hash]).from(tables.key.clone()).take();
    let ids = keys.iter().map(|key| key.id.as_uuid());
    let hashes = keys.iter().map(|key| key.hash.as_bytes().to_vec());
    [
        select().and_where(Expr::col(Key::Id).is_in(ids)).take(),
        select().and_where(Expr::col(Key::Hash).is_in(hashes)).take(),
    ]
}

/// Selects a page of keys, newest first. Keys created at the same time are in descending order of their ids.
pub(super) fn page(tables: &Tables, request: &PageRequest) -> SelectStatement {
    let mut condition = Condition::all();
    if let Some(owner) = &request.owner_id {
        condition = condition.add(Expr::col(Key::OwnerId).eq(tables.exact(owner.as_str())));
    }
    if let Some(PagePosition { created_at, id }) = request.after {
        let created_at = created_at.as_micros();
        // The second condition implies the first one, which lets the database find the position in the index.
        condition = condition.add(Expr::col(Key::CreatedAt).lte(created_at)).add(
            Condition::any()
                .add(Expr::col(Key::CreatedAt).lt(created_at))
                .add(Expr::col(Key::Id).lt(id.as_uuid())),
        );
    }
    keys(tables)
        .cond_where(condition)
        .order_by(Key::CreatedAt, Order::Desc)
        .order_by(Key::Id, Order::Desc)
        .limit(limit(request.limit))
        .take()
}

pub(super) fn insert_keys(tables: &Tables, keys: &[ApiKey]) -> Result<InsertStatement> {
    let mut insert = Query::insert().into_table(tables.key.clone()).columns(Key::ALL).take();
    for key in keys {
        insert.values(key_values(key, tables)?).map_err(unbuildable)?;
    }
    Ok(insert)
}

/// Replaces all columns of the row with the key's id.
pub(super) fn replace_key(tables: &Tables, key: &ApiKey) -> Result<UpdateStatement> {
    let values = Key::ALL.into_iter().zip(key_values(key, tables)?);
    Ok(Query::update()
        .table(tables.key.clone())
        .values(values)
        .and_where(Expr::col(Key::Id).eq(key.id.as_uuid()))
        .take())
}

/// Returns the statements that delete the key's usage and then the key.
pub(super) fn delete_key(tables: &Tables, id: KeyId) -> [DeleteStatement; 2] {
    let id = id.as_uuid();
    [
        Query::delete().from_table(tables.usage.clone()).and_where(Expr::col(Usage::KeyId).eq(id)).take(),
        Query::delete().from_table(tables.key.clone()).and_where(Expr::col(Key::Id).eq(id)).take(),
    ]
}

pub(super) fn insert_events(tables: &Tables, events: &[NewEvent<'_>]) -> Result<InsertStatement> {
    let mut insert = Query::insert().into_table(tables.event.clone()).columns(Event::ALL).take();
    for event in events {
        insert.values(event_values(event, tables)).map_err(unbuildable)?;
    }
    Ok(insert)
}

/// Selects the last revision that was assigned.
pub(super) fn head(tables: &Tables) -> SelectStatement {
    Query::select()
        .column(Head::Revision)
        .from(tables.head.clone())
        .and_where(Expr::col(Head::Id).eq(1))
        .take()
}

/// Takes the next `count` revisions.
pub(super) fn advance_head(tables: &Tables, count: i64) -> UpdateStatement {
    Query::update()
        .table(tables.head.clone())
        .value(Head::Revision, Expr::col(Head::Revision).add(count))
        .and_where(Expr::col(Head::Id).eq(1))
        .take()
}

/// Selects events from `first` on, in their order.
pub(super) fn events_from(tables: &Tables, first: Revision, count: usize) -> SelectStatement {
    events(tables)
        .and_where(Expr::col(Event::Revision).gte(first.get()))
        .order_by(Event::Revision, Order::Asc)
        .limit(limit(count))
        .take()
}

/// Selects a page of the audit trail, newest first.
pub(super) fn event_page(tables: &Tables, request: &EventPageRequest) -> SelectStatement {
    let mut condition = Condition::all();
    if let Some(id) = request.key_id {
        condition = condition.add(Expr::col(Event::KeyId).eq(id.as_uuid()));
    }
    if let Some(owner) = &request.owner_id {
        condition = condition.add(Expr::col(Event::OwnerId).eq(tables.exact(owner.as_str())));
    }
    if let Some(after) = request.after {
        condition = condition.add(Expr::col(Event::Revision).lt(after.revision.get()));
    }
    events(tables)
        .cond_where(condition)
        .order_by(Event::Revision, Order::Desc)
        .limit(limit(request.limit))
        .take()
}

/// Selects the revisions and times of the oldest events, and locks them until the transaction ends. Fails at
/// once if another transaction has locked them.
pub(super) fn lock_oldest_events(tables: &Tables, count: usize) -> SelectStatement {
    Query::select()
        .columns([Event::Revision, Event::CreatedAt])
        .from(tables.event.clone())
        .order_by(Event::Revision, Order::Asc)
        .limit(limit(count))
        .lock_with_behavior(LockType::Update, LockBehavior::Nowait)
        .take()
}

pub(super) fn delete_events_through(tables: &Tables, last: Revision) -> DeleteStatement {
    Query::delete()
        .from_table(tables.event.clone())
        .and_where(Expr::col(Event::Revision).lte(last.get()))
        .take()
}

pub(super) fn usage(tables: &Tables, ids: &[KeyId]) -> SelectStatement {
    Query::select()
        .columns([Usage::KeyId, Usage::LastUsedAt])
        .from(tables.usage.clone())
        .and_where(Expr::col(Usage::KeyId).is_in(ids.iter().map(KeyId::as_uuid)))
        .take()
}

/// Records the uses of existing keys in one statement, keeping the latest of each.
pub(super) fn record_usage(tables: &Tables, usage: &[(KeyId, Timestamp)]) -> Result<InsertStatement> {
    let mut latest = BTreeMap::new();
    for &(id, used_at) in usage {
        let known = latest.entry(id).or_insert(used_at);
        *known = used_at.max(*known);
    }
    // A list of rows that all databases support. The syntax of VALUES differs between PostgreSQL and MySQL.
    let row = |(id, used_at): (KeyId, Timestamp)| {
        Query::select().expr_as(id.as_uuid(), "used_id").expr_as(used_at.as_micros(), "used_at").take()
    };
    let mut rows = latest.into_iter().map(row);
    let mut list =
        rows.next().ok_or_else(|| RepositoryError::new(ErrorKind::Internal, "no uses to record"))?;
    for row in rows {
        list.union(UnionType::All, row);
    }
    // Within a statement, the name of a table without its schema is unambiguous.
    let existing = Query::select()
        .column((tables.key.1.clone(), Key::Id))
        .column(("used", "used_at"))
        .from_subquery(list, "used")
        .inner_join(
            tables.key.clone(),
            Expr::col((tables.key.1.clone(), Key::Id)).equals(("used", "used_id")),
        )
        // Without a condition in between, SQLite could parse ON CONFLICT as the condition of the join.
        .and_where(Expr::val(1).eq(1))
        .take();

    let stored = Expr::col((tables.usage.1.clone(), Usage::LastUsedAt));
    let offered = match tables.backend {
        DbBackend::MySql => Expr::cust("VALUES(`last_used_at`)"),
        _ => Expr::col(("excluded", Usage::LastUsedAt)),
    };
    let later = CaseStatement::new().case(offered.clone().gt(stored.clone()), offered).finally(stored);
    let on_conflict = OnConflict::column(Usage::KeyId).value(Usage::LastUsedAt, later).to_owned();
    Query::insert()
        .into_table(tables.usage.clone())
        .columns([Usage::KeyId, Usage::LastUsedAt])
        .on_conflict(on_conflict)
        .select_from(existing)
        .map(|statement| statement.to_owned())
        .map_err(unbuildable)
}

fn unbuildable(error: sea_orm::sea_query::error::Error) -> RepositoryError {
    RepositoryError::new(ErrorKind::Internal, error)
}
