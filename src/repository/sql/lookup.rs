//! Finding keys by their hashes: the query on the way of every validation that no cache answers.

use std::collections::HashMap;

use sea_orm::{ConnectionTrait as _, FromQueryResult as _, Statement};

use super::error::from_db;
use super::place::Pool;
use super::query;
use super::row::KeyRow;
use super::tables::Tables;
use crate::domain::{ApiKey, KeyHash};
use crate::repository::Result;

/// How many hashes a statement names: few sizes, since each connection prepares each of them once.
const SIZES: [usize; 4] = [1, 4, 16, 64];
/// How many hashes one statement takes.
pub(super) const MAX_HASHES: usize = SIZES[SIZES.len() - 1];

/// The statements, built once.
#[derive(Clone, Debug)]
pub(super) struct LookupStatements([String; SIZES.len()]);

impl LookupStatements {
    pub(super) fn new(tables: &Tables) -> Self {
        Self(SIZES.map(|size| query::keys_by_hash(tables, size)))
    }

    /// Looks for up to [`MAX_HASHES`] hashes. Where there are fewer than the statement names, the last one is named again.
    pub(super) fn of(&self, tables: &Tables, hashes: &[KeyHash]) -> Statement {
        let fitting = SIZES.iter().zip(&self.0).find(|(size, _)| **size >= hashes.len());
        let (size, sql) = fitting.unwrap_or((&MAX_HASHES, &self.0[SIZES.len() - 1]));
        let padding = hashes.last().into_iter().cycle();
        let values = hashes.iter().chain(padding).take(*size).map(|hash| hash.as_bytes().to_vec().into());
        Statement::from_sql_and_values(tables.backend, sql, values)
    }
}

/// The key of each of up to [`MAX_HASHES`] hashes.
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
        // A row that can't be read is the answer to its own hash alone.
        let key = KeyRow::from_query_result(&row, "").map_err(from_db).and_then(KeyRow::into_key);
        found.insert(hash, key);
    }
    Ok(hashes.iter().map(|hash| found.get(hash.as_bytes().as_slice()).cloned().transpose()).collect())
}
