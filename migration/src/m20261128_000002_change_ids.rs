//! Nonces of changes, hashes of revoked keys, ids of requests, and the identity of the installation.
//!
//! - `api_key.nonce`: the nonce of the key's last change, which is also in `key_event`. It is valid only
//!   while `nonce_revision` equals `revision`, because earlier releases change a key without updating either
//!   column.
//! - `store_identity`: one row with a random identity of this installation. Servers write it when they first
//!   need it.
//! - `key_request`: the key that a `CreateKey` or `RotateKey` with a request id created.
//! - `revoked_hash`: the hashes of keys that were revoked and then deleted, so that an import can't revive
//!   them.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::Names;
use crate::sql_migration::Statements;

pub(crate) struct ChangeIds;

impl Statements for ChangeIds {
    const NAME: &'static str = "m20261128_000002_change_ids";

    fn up(names: &Names, backend: DbBackend) -> Vec<String> {
        let mut statements = Vec::new();
        for column in NONCE_COLUMNS {
            statements.extend(add_column(names, backend, column));
        }
        statements.push(fill_nonces(names));
        let tables = [
            (store_identity(names), None),
            (revoked_hash(names), None),
            (key_request(names), Some(key_request_age(names))),
        ];
        for (table, index) in tables {
            create(table, index, backend, &mut statements);
        }
        statements
    }

    fn down(names: &Names, backend: DbBackend) -> Vec<String> {
        let tables = [names.key_request(), names.revoked_hash(), names.store_identity()];
        let mut statements: Vec<_> = tables
            .into_iter()
            .map(|table| backend.build(&Table::drop().table(Alias::new(table)).if_exists().take()).sql)
            .collect();
        for column in NONCE_COLUMNS {
            statements.extend(drop_column(names, backend, column));
        }
        statements
    }
}

/// Adds the statements that create `table`. MySQL has no `IF NOT EXISTS` for indexes, but can create them
/// together with their table in one idempotent statement.
fn create(
    mut table: TableCreateStatement,
    index: Option<IndexCreateStatement>,
    backend: DbBackend,
    statements: &mut Vec<String>,
) {
    table.if_not_exists();
    if backend == DbBackend::MySql {
        table.engine("InnoDB").character_set("utf8mb4").collate("utf8mb4_bin");
        if let Some(mut index) = index {
            table.index(&mut index);
        }
        statements.push(backend.build(&table).sql);
    } else {
        statements.push(backend.build(&table).sql);
        statements.extend(index.map(|mut index| backend.build(index.if_not_exists()).sql));
    }
}

const NONCE_COLUMNS: [&str; 2] = ["nonce", "nonce_revision"];

fn add_column(names: &Names, backend: DbBackend, column: &str) -> Vec<String> {
    let table = names.api_key();
    match backend {
        DbBackend::MySql => on_mysql(&table, column, false, &format!("ADD COLUMN `{column}` bigint NULL")),
        DbBackend::Postgres => {
            vec![format!(r#"ALTER TABLE "{table}" ADD COLUMN IF NOT EXISTS "{column}" bigint NULL"#)]
        }
        _ => vec![format!(r#"ALTER TABLE "{table}" ADD COLUMN "{column}" bigint NULL"#)],
    }
}

fn drop_column(names: &Names, backend: DbBackend, column: &str) -> Vec<String> {
    let table = names.api_key();
    match backend {
        DbBackend::MySql => on_mysql(&table, column, true, &format!("DROP COLUMN `{column}`")),
        DbBackend::Postgres => vec![format!(r#"ALTER TABLE "{table}" DROP COLUMN IF EXISTS "{column}""#)],
        _ => vec![format!(r#"ALTER TABLE "{table}" DROP COLUMN "{column}""#)],
    }
}

/// Returns statements that alter `table` depending on whether it has `column`. MySQL has no single statement
/// for that, and an interrupted migration has to be repeatable. The statements are sent together, because
/// they share a session.
fn on_mysql(table: &str, column: &str, if_it_has: bool, alteration: &str) -> Vec<String> {
    let found = i32::from(if_it_has);
    vec![format!(
        "SET @keyvouch = IF((SELECT COUNT(*) FROM information_schema.columns WHERE table_schema = DATABASE() \
         AND table_name = '{table}' AND column_name = '{column}') = {found}, \
         'ALTER TABLE `{table}` {alteration}', 'DO 0'); \
         PREPARE keyvouch FROM @keyvouch; EXECUTE keyvouch; DEALLOCATE PREPARE keyvouch"
    )]
}

/// Returns a statement that copies the nonces of the events that are still stored.
fn fill_nonces(names: &Names) -> String {
    let (key, event) = (names.api_key(), names.key_event());
    format!(
        "UPDATE {key} SET nonce = (SELECT {event}.nonce FROM {event} WHERE {event}.revision = {key}.revision), \
         nonce_revision = {key}.revision \
         WHERE EXISTS (SELECT 1 FROM {event} WHERE {event}.revision = {key}.revision)"
    )
}

fn store_identity(names: &Names) -> TableCreateStatement {
    Table::create()
        .table(Alias::new(names.store_identity()))
        .col(ColumnDef::new(StoreIdentity::Id).integer().not_null().primary_key())
        .col(ColumnDef::new(StoreIdentity::Identity).uuid().not_null())
        .take()
}

fn revoked_hash(names: &Names) -> TableCreateStatement {
    Table::create()
        .table(Alias::new(names.revoked_hash()))
        .col(ColumnDef::new(RevokedHash::Hash).binary_len(32).not_null().primary_key())
        .col(ColumnDef::new(RevokedHash::DeletedAt).big_integer().not_null())
        .take()
}

fn key_request(names: &Names) -> TableCreateStatement {
    Table::create()
        .table(Alias::new(names.key_request()))
        .col(ColumnDef::new(KeyRequest::Digest).binary_len(32).not_null().primary_key())
        .col(ColumnDef::new(KeyRequest::KeyId).uuid().not_null())
        .col(ColumnDef::new(KeyRequest::CreatedAt).big_integer().not_null())
        .take()
}

/// Returns the index for pruning.
fn key_request_age(names: &Names) -> IndexCreateStatement {
    Index::create()
        .name(names.named("key_request_age"))
        .table(Alias::new(names.key_request()))
        .col(KeyRequest::CreatedAt)
        .take()
}

#[derive(DeriveIden)]
enum StoreIdentity {
    Id,
    Identity,
}

#[derive(DeriveIden)]
enum RevokedHash {
    Hash,
    DeletedAt,
}

#[derive(DeriveIden)]
enum KeyRequest {
    Digest,
    KeyId,
    CreatedAt,
}
