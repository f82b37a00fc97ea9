//! The first schema: keys, their usage, the events of their changes and the counter of revisions.
//!
//! Times are in microseconds since the Unix epoch in UTC as `BIGINT`, because the timestamp types of the
//! databases differ in range and precision. Scopes and metadata are JSON texts. Owners are compared byte by
//! byte. On MySQL they are `VARBINARY`, since all its text collations fold letters or ignore trailing spaces
//! on some servers.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::Names;
use crate::sql_migration::Statements;

pub(crate) struct CreateKeyTables;

impl Statements for CreateKeyTables {
    const NAME: &'static str = "m20261123_000001_create_key_tables";

    fn up(names: &Names, backend: DbBackend) -> Vec<String> {
        let schema = Schema { names, backend };
        let mut statements = Vec::new();
        schema.create(schema.api_key(), schema.api_key_indexes().into(), &mut statements);
        schema.create(schema.api_key_usage(), Vec::new(), &mut statements);
        schema.create(schema.key_event(), schema.key_event_indexes().into(), &mut statements);
        schema.create(schema.revision_head(), Vec::new(), &mut statements);
        statements.push(schema.first_revision_head());
        statements
    }

    fn down(names: &Names, backend: DbBackend) -> Vec<String> {
        let tables = [names.revision_head(), names.key_event(), names.api_key_usage(), names.api_key()];
        tables
            .into_iter()
            .map(|table| {
                // Idempotent, as every statement has to be.
                let drop = Table::drop().table(Alias::new(table)).if_exists().take();
                backend.build(&drop).sql
            })
            .collect()
    }
}

struct Schema<'n> {
    names: &'n Names,
    backend: DbBackend,
}

impl Schema<'_> {
    /// Adds the statements that create `table`. MySQL has no `IF NOT EXISTS` for indexes, but can create them
    /// together with their table in one idempotent statement.
    fn create(
        &self,
        mut table: TableCreateStatement,
        indexes: Vec<IndexCreateStatement>,
        statements: &mut Vec<String>,
    ) {
        table.if_not_exists();
        if self.backend == DbBackend::MySql {
            table.engine("InnoDB").character_set("utf8mb4").collate("utf8mb4_bin");
            for mut index in indexes {
                table.index(&mut index);
            }
            statements.push(self.backend.build(&table).sql);
        } else {
            statements.push(self.backend.build(&table).sql);
            statements
                .extend(indexes.into_iter().map(|mut index| self.backend.build(index.if_not_exists()).sql));
        }
    }

    fn api_key(&self) -> TableCreateStatement {
        Table::create()
            .table(Alias::new(self.names.api_key()))
            .col(ColumnDef::new(ApiKey::Id).uuid().not_null().primary_key())
            .col(ColumnDef::new(ApiKey::Hash).binary_len(32).not_null())
            .col(ColumnDef::new(ApiKey::Prefix).string_len(16).not_null())
            .col(ColumnDef::new(ApiKey::Name).string_len(128).not_null())
            .col(ColumnDef::new(ApiKey::Description).string_len(1024).not_null())
            .col(self.owner(ApiKey::OwnerId))
            .col(self.long_text(ApiKey::Scopes))
            .col(self.long_text(ApiKey::Metadata))
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

    fn api_key_indexes(&self) -> [IndexCreateStatement; 3] {
        let index = |name| self.index(name, self.names.api_key());
        [
            index("api_key_hash").col(ApiKey::Hash).unique().take(),
            index("api_key_owner_order").col(ApiKey::OwnerId).col(ApiKey::CreatedAt).col(ApiKey::Id).take(),
            index("api_key_order").col(ApiKey::CreatedAt).col(ApiKey::Id).take(),
        ]
    }

    fn api_key_usage(&self) -> TableCreateStatement {
        let mut table = Table::create();
        table
            .table(Alias::new(self.names.api_key_usage()))
            .col(ColumnDef::new(ApiKeyUsage::KeyId).uuid().not_null().primary_key())
            .col(ColumnDef::new(ApiKeyUsage::LastUsedAt).big_integer().not_null());
        // On MySQL, a foreign key would make each write of usage lock the row of its key, and a revocation
        // wait for it.
        if self.backend != DbBackend::MySql {
            table.foreign_key(
                ForeignKey::create()
                    .name(self.names.named("api_key_usage_key"))
                    .from(Alias::new(self.names.api_key_usage()), ApiKeyUsage::KeyId)
                    .to(Alias::new(self.names.api_key()), ApiKey::Id)
                    .on_delete(ForeignKeyAction::Cascade),
            );
        }
        table
    }

    /// The change feed and the audit trail. Its rows outlive their keys.
    fn key_event(&self) -> TableCreateStatement {
        Table::create()
            .table(Alias::new(self.names.key_event()))
            .col(ColumnDef::new(KeyEvent::Revision).big_integer().not_null().primary_key())
            .col(ColumnDef::new(KeyEvent::Nonce).big_integer().not_null())
            .col(ColumnDef::new(KeyEvent::KeyId).uuid().not_null())
            .col(ColumnDef::new(KeyEvent::Hash).binary_len(32).not_null())
            .col(self.owner(KeyEvent::OwnerId))
            .col(ColumnDef::new(KeyEvent::Kind).string_len(16).not_null())
            .col(self.long_text(KeyEvent::ChangedFields))
            .col(ColumnDef::new(KeyEvent::Actor).string_len(256).not_null())
            .col(ColumnDef::new(KeyEvent::RequestId).string_len(128).not_null())
            .col(ColumnDef::new(KeyEvent::CreatedAt).big_integer().not_null())
            .take()
    }

    fn key_event_indexes(&self) -> [IndexCreateStatement; 2] {
        let index = |name| self.index(name, self.names.key_event());
        [
            index("key_event_key").col(KeyEvent::KeyId).col(KeyEvent::Revision).take(),
            index("key_event_owner").col(KeyEvent::OwnerId).col(KeyEvent::Revision).take(),
        ]
    }

    /// A table with one row: the last revision that was assigned.
    fn revision_head(&self) -> TableCreateStatement {
        Table::create()
            .table(Alias::new(self.names.revision_head()))
            .col(ColumnDef::new(RevisionHead::Id).integer().not_null().primary_key())
            .col(ColumnDef::new(RevisionHead::Revision).big_integer().not_null())
            .take()
    }

    fn first_revision_head(&self) -> String {
        let insert = Query::insert()
            .into_table(Alias::new(self.names.revision_head()))
            .columns([RevisionHead::Id, RevisionHead::Revision])
            .values_panic([1.into(), 0_i64.into()])
            .on_conflict(OnConflict::column(RevisionHead::Id).do_nothing_on([RevisionHead::Id]).to_owned())
            .take();
        self.backend.build(&insert).to_string()
    }

    /// A text of up to 128 characters that is compared byte by byte.
    fn owner(&self, column: impl IntoIden) -> ColumnDef {
        let mut column = ColumnDef::new(column);
        match self.backend {
            DbBackend::MySql => column.var_binary(512),
            DbBackend::Postgres => column.custom(Alias::new("varchar(128) COLLATE \"C\"")),
            _ => column.string_len(128),
        };
        column.not_null().take()
    }

    /// A text that can be longer than the 65,535 bytes of MySQL's `TEXT`.
    fn long_text(&self, column: impl IntoIden) -> ColumnDef {
        let mut column = ColumnDef::new(column);
        match self.backend {
            DbBackend::MySql => column.custom(Alias::new("mediumtext")),
            _ => column.text(),
        };
        column.not_null().take()
    }

    fn index(&self, name: &str, table: String) -> IndexCreateStatement {
        Index::create().name(self.names.named(name)).table(Alias::new(table)).take()
    }
}

#[derive(DeriveIden)]
enum ApiKey {
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
    KeyId,
    LastUsedAt,
}

#[derive(DeriveIden)]
enum KeyEvent {
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
    Id,
    Revision,
}
