//! The names of tables and columns in statements. The crate in `migration/` creates them and does not use
//! this module.

use data_encoding::HEXLOWER;
use keyvouch_migration::Names;
use sea_orm::sea_query::{Alias, IntoIden as _, SchemaName, TableName};
use sea_orm::{DbBackend, DeriveIden, Value};
use sha2::{Digest as _, Sha256};

/// The tables of one installation, and the dialect of its database.
///
/// On PostgreSQL, all names have their schema, so that the `search_path` of a session can't direct a statement
/// to the tables of another installation.
#[derive(Clone, Debug)]
pub(super) struct Tables {
    pub backend: DbBackend,
    pub key: TableName,
    pub usage: TableName,
    pub event: TableName,
    pub head: TableName,
    pub identity: TableName,
    pub revoked_hash: TableName,
    pub request: TableName,
    /// The channel of PostgreSQL's notifications.
    pub channel: Option<String>,
}

/// Returns a channel name that fits in 63 bytes, whatever the names of the tables are.
fn channel(names: &Names) -> String {
    let digest = Sha256::digest(format!("{names:?}"));
    format!("keyvouch_{}", HEXLOWER.encode(&digest[..8]))
}

impl Tables {
    /// Returns the tables with these `names` in `schema`, which only PostgreSQL has.
    pub(super) fn new(names: &Names, schema: Option<&str>, backend: DbBackend) -> Self {
        let schema = schema.map(|schema| SchemaName(None, Alias::new(schema).into_iden()));
        let table = |name: String| TableName(schema.clone(), Alias::new(name).into_iden());
        Self {
            backend,
            key: table(names.api_key()),
            usage: table(names.api_key_usage()),
            event: table(names.key_event()),
            head: table(names.revision_head()),
            identity: table(names.store_identity()),
            revoked_hash: table(names.revoked_hash()),
            request: table(names.key_request()),
            channel: (backend == DbBackend::Postgres).then(|| channel(names)),
        }
    }

    /// Returns a text that the database compares byte by byte. On MySQL, the column is binary.
    pub(super) fn exact(&self, text: &str) -> Value {
        match self.backend {
            DbBackend::MySql => text.as_bytes().to_vec().into(),
            _ => text.to_owned().into(),
        }
    }
}

/// The columns of keys.
#[derive(Clone, Copy, Debug, DeriveIden)]
pub(super) enum Key {
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
    Nonce,
    NonceRevision,
}

impl Key {
    /// All columns, in the order of [`super::row::key_values`].
    pub(super) const ALL: [Self; 18] = [
        Self::Id,
        Self::Hash,
        Self::Prefix,
        Self::Name,
        Self::Description,
        Self::OwnerId,
        Self::Scopes,
        Self::Metadata,
        Self::CreatedAt,
        Self::UpdatedAt,
        Self::ExpiresAt,
        Self::RevokedAt,
        Self::RevokeReason,
        Self::RotatedFrom,
        Self::ReplacedBy,
        Self::Revision,
        Self::Nonce,
        Self::NonceRevision,
    ];
}

/// The columns of last uses.
#[derive(Clone, Copy, Debug, DeriveIden)]
pub(super) enum Usage {
    KeyId,
    LastUsedAt,
}

/// The columns of events.
#[derive(Clone, Copy, Debug, DeriveIden)]
pub(super) enum Event {
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

impl Event {
    /// All columns, in the order of [`super::row::event_values`].
    pub(super) const ALL: [Self; 10] = [
        Self::Revision,
        Self::Nonce,
        Self::KeyId,
        Self::Hash,
        Self::OwnerId,
        Self::Kind,
        Self::ChangedFields,
        Self::Actor,
        Self::RequestId,
        Self::CreatedAt,
    ];
}

/// The columns of the single row with the last revision.
#[derive(Clone, Copy, Debug, DeriveIden)]
pub(super) enum Head {
    Id,
    Revision,
}

/// The columns of the single row with the identity of this installation.
#[derive(Clone, Copy, Debug, DeriveIden)]
pub(super) enum Identity {
    Id,
    Identity,
}

/// The columns of the hashes of keys that were revoked and deleted.
#[derive(Clone, Copy, Debug, DeriveIden)]
pub(super) enum RevokedHash {
    Hash,
    DeletedAt,
}

/// The columns of requests that created keys.
#[derive(Clone, Copy, Debug, DeriveIden)]
pub(super) enum Request {
    Digest,
    KeyId,
    CreatedAt,
}
