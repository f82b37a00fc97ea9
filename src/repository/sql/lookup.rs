//! Lookups of keys by their hashes. Every validation that is not answered by a cache runs this query.

use std::collections::HashMap;

use sea_orm::{ConnectionTrait as _, FromQueryResult as _, Statement};

use super::error::from_db;
use super::pool::Pool;
use super::query;
use super::row::KeyRow;
use super::tables::Tables;
use crate::domain::{ApiKey, KeyHash};
use crate::repository::Result;

/// Numbers of hashes per statement. There are few, because each connection prepares each statement once.
const SIZES: [usize; 4] = [1, 4, 16, 64];
/// Maximum number of hashes per statement.
pub(super) const MAX_HASHES: usize = SIZES[SIZES.len() - 1];

/// The statements, built once.
#[derive(Clone, Debug)]
pub(super) struct LookupStatements([String; SIZES.len()]);

impl LookupStatements {
    pub(super) fn new(tables: &Tables) -> Self {
        Self(SIZES.map(|size| query::keys_by_hash(tables, size)))
    }

    /// Returns the statement for up to [`MAX_HASHES`] hashes. Repeats the last hash if the statement has more
    /// parameters.
    pub(super) fn of(&self, tables: &Tables, hashes: &[KeyHash]) -> Statement {
        let fitting = SIZES.iter().zip(&self.0).find(|(size, _)| **size >= hashes.len());
        let (size, sql) = fitting.unwrap_or((&MAX_HASHES, &self.0[SIZES.len() - 1]));
        let padding = hashes.last().into_iter().cycle();
        let values = hashes.iter().chain(padding).take(*size).map(|hash| hash.as_bytes().to_vec().into());
        Statement::from_sql_and_values(tables.backend, sql, values)
    }
}

/// Looks up the keys of up to [`MAX_HASHES`] hashes.
pub(super) async fn find(
    pool: Pool,
    tables: &Tables,
    statements: &LookupStatements,
    hashes: &[KeyHash],
) -> Result<Vec<Result<Option<ApiKey>>>> {
    let rows = pool.connection.query_all_raw(statements.of(tables, hashes)).await.map_err(from_db)?;
    let mut found = HashMap::with_capacity(rows.len());
    for row in rows {
        let hash: Vec<u8> = row.try_get("", "hash").map_err(from_db)?;
        // An unreadable row only affects the outcome of its own hash.
        let key = KeyRow::from_query_result(&row, "").map_err(from_db).and_then(KeyRow::into_key);
        found.insert(hash, key);
    }
    Ok(hashes.iter().map(|hash| found.get(hash.as_bytes().as_slice()).cloned().transpose()).collect())
}
