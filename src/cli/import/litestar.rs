//! Rows of litestar-api-auth's SQL backend (0.1): the table `api_keys`.
//!
//! `docs/import.md` describes how its columns are mapped.

use std::time::Duration;

use super::row::{Row, digest, metadata, parse_time, scopes};
use crate::domain::{InvalidField, KeyPrefix};
use crate::grpc::pb;
use anyhow::{Context as _, Result, anyhow, bail};
use sea_orm::{
    ConnectOptions, ConnectionTrait as _, Database, DatabaseConnection, DbBackend, QueryResult, Statement,
};

/// The schemes of databases that can be read.
const SCHEMES: [&str; 5] = ["sqlite", "postgres", "postgresql", "mysql", "mariadb"];
/// Timeout of the connection. The driver retries for this long even if the connection is refused.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Number of rows per query.
const PAGE: u64 = 500;
/// Metadata key of the id in the source database.
pub(super) const OLD_ID: &str = "litestar_key_id";
/// Revocation reason of keys that were not active.
const REVOKE_REASON: &str = "was inactive in litestar-api-auth";
/// Number of characters after the prefix of its keys: base64url of 32 bytes, without padding.
pub(super) const BODY_CHARS: usize = 43;

/// The keys in a database, by ascending row ids.
pub(super) struct LitestarRows {
    database: DatabaseConnection,
    table: String,
    owner: String,
    prefix: String,
    now: prost_types::Timestamp,
    last_row: i64,
    page: std::vec::IntoIter<QueryResult>,
}

/// Returns whether `from` is the URL of a database.
pub(super) fn is_url(from: &str) -> bool {
    from.split_once(':').is_some_and(|(scheme, _)| SCHEMES.contains(&scheme))
}

impl LitestarRows {
    /// Connects to the database at `url`. No error contains any part of the URL.
    pub(super) async fn open(
        url: &str,
        table: &str,
        owner: &str,
        key_prefix: &str,
        now: prost_types::Timestamp,
    ) -> Result<Self> {
        let mut options = ConnectOptions::new(url);
        options.max_connections(1).acquire_timeout(CONNECT_TIMEOUT).sqlx_logging(false);
        // The driver's message can contain the URL with its password, so it is not used.
        let database = Database::connect(options).await.map_err(|_| {
            anyhow!(
                "--from: can't connect to the database; check that the URL is right and the database is up"
            )
        })?;
        // Keyvouch's rules for prefixes are stricter. If this one is invalid, the key is stored without a prefix.
        let prefix =
            KeyPrefix::parse("prefix", key_prefix).map_or_else(|_| String::new(), |it| it.to_string());
        Ok(Self {
            table: quoted(table, database.get_database_backend())?,
            database,
            owner: owner.to_owned(),
            prefix,
            now,
            last_row: i64::MIN,
            page: Vec::new().into_iter(),
        })
    }

    pub(super) async fn next(&mut self) -> Result<Option<Row>> {
        if self.page.as_slice().is_empty() {
            let page = self.database.query_all_raw(self.statement()).await;
            self.page = page.context("can't read the keys of litestar-api-auth")?.into_iter();
        }
        let Some(row) = self.page.next() else {
            return Ok(None);
        };
        self.last_row = row.try_get("", "row_id").context("a row of litestar-api-auth has no id")?;
        Ok(Some(Row { label: format!("row {}", self.last_row), request: self.request(&row) }))
    }

    /// Creates the query. It converts values whose types differ between databases to texts.
    fn statement(&self) -> Statement {
        let backend = self.database.get_database_backend();
        let time = |name: &str| match backend {
            DbBackend::Postgres => {
                format!("to_char({name} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') AS {name}")
            }
            DbBackend::MySql => format!("DATE_FORMAT({name}, '%Y-%m-%dT%H:%i:%s.%fZ') AS {name}"),
            _ => name.to_owned(),
        };
        let (cast_id, json) = match backend {
            DbBackend::MySql => ("SIGNED", "CHAR"),
            _ => ("BIGINT", "TEXT"),
        };
        let json = |name: &str| format!("CAST({name} AS {json}) AS {name}");
        let sql = format!(
            "SELECT CAST(id AS {cast_id}) AS row_id, key_id, key_hash, name, {}, {}, \
             CASE WHEN is_active THEN 'yes' ELSE 'no' END AS is_active, {}, {}, {} \
             FROM {} WHERE id > {} ORDER BY id LIMIT {PAGE}",
            json("scopes"),
            json("metadata_"),
            time("created_at"),
            time("expires_at"),
            time("last_used_at"),
            self.table,
            self.last_row,
        );
        Statement::from_string(backend, sql)
    }

    fn request(&self, row: &QueryResult) -> Result<pb::ImportKeysRequest, InvalidField> {
        let hash = digest(&text(row, "key_hash")?.unwrap_or_default())?;
        let old_id = text(row, "key_id")?.unwrap_or_default();
        let mut metadata = metadata(json(row, "metadata_")?.as_deref())?;
        if metadata.insert(OLD_ID.to_owned(), old_id).is_some() {
            return Err(InvalidField::new("metadata_", format!("already has the key {OLD_ID}; rename it")));
        }
        let is_active = text(row, "is_active")?.as_deref() == Some("yes");
        let key = pb::Key {
            prefix: self.prefix.clone(),
            name: text(row, "name")?.unwrap_or_default(),
            owner_id: self.owner.clone(),
            scopes: scopes(json(row, "scopes")?.as_deref())?,
            metadata,
            create_time: time(row, "created_at")?,
            expire_time: time(row, "expires_at")?,
            last_used_time: time(row, "last_used_at")?,
            revoke_time: (!is_active).then_some(self.now),
            revoke_reason: if is_active { String::new() } else { REVOKE_REASON.to_owned() },
            ..pb::Key::default()
        };
        Ok(pb::ImportKeysRequest { key: Some(key), hash, allow_revoked_hash: false })
    }
}

/// Quotes `table` or `schema.table` for the database.
fn quoted(table: &str, backend: DbBackend) -> Result<String> {
    let is_plain = |name: &str| {
        !name.is_empty()
            && name.chars().all(|char| char.is_ascii_alphanumeric() || matches!(char, '_' | '$' | '-'))
    };
    let names: Vec<_> = table.split('.').collect();
    if names.len() > 2 || !names.iter().all(|name| is_plain(name)) {
        bail!("--table: invalid table name; expected TABLE or SCHEMA.TABLE");
    }
    let quote = if backend == DbBackend::MySql { '`' } else { '"' };
    Ok(names.iter().map(|name| format!("{quote}{name}{quote}")).collect::<Vec<_>>().join("."))
}

fn text(row: &QueryResult, name: &str) -> Result<Option<String>, InvalidField> {
    row.try_get("", name).map_err(|_| unreadable(name))
}

/// Returns JSON as the database prints it. `None` for SQL NULL and for JSON null.
fn json(row: &QueryResult, name: &str) -> Result<Option<String>, InvalidField> {
    Ok(text(row, name)?.filter(|json| json.trim() != "null"))
}

/// Parses a time. SQLite stores the texts that `SQLAlchemy` writes: in UTC, with a space and often without an offset.
fn time(row: &QueryResult, name: &str) -> Result<Option<prost_types::Timestamp>, InvalidField> {
    let Some(text) = text(row, name)? else {
        return Ok(None);
    };
    let mut text = text.replacen(' ', "T", 1);
    let has_offset = text.get(10..).is_some_and(|time| time.contains(['Z', 'z', '+', '-']));
    if !has_offset {
        text.push('Z');
    }
    parse_time(name, &text).map(Some)
}

fn unreadable(name: &str) -> InvalidField {
    InvalidField::new(name, "the type of the value is not the one that litestar-api-auth writes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_table_names_are_rejected() {
        assert_eq!(quoted("api_keys", DbBackend::Sqlite).unwrap(), "\"api_keys\"");
        assert_eq!(quoted("auth.api_keys", DbBackend::MySql).unwrap(), "`auth`.`api_keys`");
        for invalid in ["", "a.b.c", "a b", "a\"b", "a;b", ".a"] {
            assert!(quoted(invalid, DbBackend::Postgres).is_err(), "{invalid}");
        }
    }

    #[test]
    fn database_urls_are_distinguished_from_files() {
        assert!(is_url("sqlite:///app.db") && is_url("postgres://h/d") && is_url("mysql://h/d"));
        assert!(!is_url("keys.jsonl") && !is_url("/tmp/keys.csv") && !is_url("http://h"));
    }
}
