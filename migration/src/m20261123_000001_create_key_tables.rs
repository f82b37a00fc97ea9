//! The first schema: keys, their usage, the events of their changes and the counter of revisions.
//!
//! Times are microseconds since the epoch in UTC as `BIGINT`, because the timestamp types of the databases differ in
//! range and precision. Scopes and metadata are JSON texts.

#![expect(elided_lifetimes_in_paths, reason = "the trait elides it, and async_trait needs both to agree")]

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(api_key()).await?;
        for index in api_key_indexes() {
            manager.create_index(index).await?;
        }
        manager.create_table(api_key_usage()).await?;
        manager.create_table(key_event()).await?;
        for index in key_event_indexes() {
            manager.create_index(index).await?;
        }
        manager.create_table(revision_head()).await?;
        manager.execute(first_revision_head()).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table(RevisionHead::Table).to_owned()).await?;
        manager.drop_table(Table::drop().table(KeyEvent::Table).to_owned()).await?;
        manager.drop_table(Table::drop().table(ApiKeyUsage::Table).to_owned()).await?;
        manager.drop_table(Table::drop().table(ApiKey::Table).to_owned()).await
    }
}

fn api_key() -> TableCreateStatement {
    Table::create()
        .table(ApiKey::Table)
        .if_not_exists()
        .col(ColumnDef::new(ApiKey::Id).uuid().not_null().primary_key())
        .col(ColumnDef::new(ApiKey::Hash).binary_len(32).not_null())
        .col(ColumnDef::new(ApiKey::Prefix).string_len(16).not_null())
        .col(ColumnDef::new(ApiKey::Name).string_len(128).not_null())
        .col(ColumnDef::new(ApiKey::Description).string_len(1024).not_null())
        .col(ColumnDef::new(ApiKey::OwnerId).string_len(128).not_null())
        .col(ColumnDef::new(ApiKey::Scopes).text().not_null())
        .col(ColumnDef::new(ApiKey::Metadata).text().not_null())
        .col(ColumnDef::new(ApiKey::CreatedAt).big_integer().not_null())
        .col(ColumnDef::new(ApiKey::UpdatedAt).big_integer().not_null())
        .col(ColumnDef::new(ApiKey::ExpiresAt).big_integer())
        .col(ColumnDef::new(ApiKey::RevokedAt).big_integer())
        .col(ColumnDef::new(ApiKey::RevokeReason).string_len(256))
        .col(ColumnDef::new(ApiKey::RotatedFrom).uuid())
        .col(ColumnDef::new(ApiKey::ReplacedBy).uuid())
        .col(ColumnDef::new(ApiKey::Revision).big_integer().not_null())
        .take()
}

fn api_key_indexes() -> [IndexCreateStatement; 3] {
    [
        index("api_key_hash", ApiKey::Table).col(ApiKey::Hash).unique().take(),
        index("api_key_owner_order", ApiKey::Table)
            .col(ApiKey::OwnerId)
            .col(ApiKey::CreatedAt)
            .col(ApiKey::Id)
            .take(),
        index("api_key_order", ApiKey::Table).col(ApiKey::CreatedAt).col(ApiKey::Id).take(),
    ]
}

fn api_key_usage() -> TableCreateStatement {
    Table::create()
        .table(ApiKeyUsage::Table)
        .if_not_exists()
        .col(ColumnDef::new(ApiKeyUsage::KeyId).uuid().not_null().primary_key())
        .col(ColumnDef::new(ApiKeyUsage::LastUsedAt).big_integer().not_null())
        .foreign_key(
            ForeignKey::create()
                .name("api_key_usage_key")
                .from(ApiKeyUsage::Table, ApiKeyUsage::KeyId)
                .to(ApiKey::Table, ApiKey::Id)
                .on_delete(ForeignKeyAction::Cascade),
        )
        .take()
}

/// The change feed and the audit trail. Its rows outlive their keys.
fn key_event() -> TableCreateStatement {
    Table::create()
        .table(KeyEvent::Table)
        .if_not_exists()
        .col(ColumnDef::new(KeyEvent::Revision).big_integer().not_null().primary_key())
        .col(ColumnDef::new(KeyEvent::Nonce).big_integer().not_null())
        .col(ColumnDef::new(KeyEvent::KeyId).uuid().not_null())
        .col(ColumnDef::new(KeyEvent::Hash).binary_len(32).not_null())
        .col(ColumnDef::new(KeyEvent::OwnerId).string_len(128).not_null())
        .col(ColumnDef::new(KeyEvent::Kind).string_len(16).not_null())
        .col(ColumnDef::new(KeyEvent::ChangedFields).text().not_null())
        .col(ColumnDef::new(KeyEvent::Actor).string_len(256).not_null())
        .col(ColumnDef::new(KeyEvent::RequestId).string_len(128).not_null())
        .col(ColumnDef::new(KeyEvent::CreatedAt).big_integer().not_null())
        .take()
}

fn key_event_indexes() -> [IndexCreateStatement; 2] {
    [
        index("key_event_key", KeyEvent::Table).col(KeyEvent::KeyId).col(KeyEvent::Revision).take(),
        index("key_event_owner", KeyEvent::Table).col(KeyEvent::OwnerId).col(KeyEvent::Revision).take(),
    ]
}

/// One row: the last revision that was given out.
fn revision_head() -> TableCreateStatement {
    Table::create()
        .table(RevisionHead::Table)
        .if_not_exists()
        .col(ColumnDef::new(RevisionHead::Id).integer().not_null().primary_key())
        .col(ColumnDef::new(RevisionHead::Revision).big_integer().not_null())
        .take()
}

fn first_revision_head() -> InsertStatement {
    Query::insert()
        .into_table(RevisionHead::Table)
        .columns([RevisionHead::Id, RevisionHead::Revision])
        .values_panic([1.into(), 0_i64.into()])
        .take()
}

fn index(name: &str, table: impl Iden + 'static) -> IndexCreateStatement {
    Index::create().if_not_exists().name(name).table(table).take()
}

#[derive(DeriveIden)]
enum ApiKey {
    Table,
    Id,
    Hash,
    Prefix,
    Name,
    Description,
    OwnerId,
    Scopes,
    Metadata,
    CreatedAt,
    UpdatedAt,
    ExpiresAt,
    RevokedAt,
    RevokeReason,
    RotatedFrom,
    ReplacedBy,
    Revision,
}

#[derive(DeriveIden)]
enum ApiKeyUsage {
    Table,
    KeyId,
    LastUsedAt,
}

#[derive(DeriveIden)]
enum KeyEvent {
    Table,
    Revision,
    Nonce,
    KeyId,
    Hash,
    OwnerId,
    Kind,
    ChangedFields,
    Actor,
    RequestId,
    CreatedAt,
}

#[derive(DeriveIden)]
enum RevisionHead {
    Table,
    Id,
    Revision,
}
