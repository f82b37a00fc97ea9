//! Query plans of the repository's statements, for tests which check that none scans a whole table.

use sea_orm::{ConnectionTrait as _, DbBackend, Statement, StatementBuilder};

use super::SqlRepository;
use super::error::from_db;
use super::query;
use crate::domain::{ApiKey, KeyHash, Revision};
use crate::repository::{EventPageRequest, EventPosition, PagePosition, PageRequest, Result};

impl SqlRepository {
    /// Returns the plans of all statements on keys, uses and events, each with its name. The statements have
    /// values of `key`, which has to be stored, because some databases return short plans for values that
    /// match no row.
    pub async fn explain(&self, key: &ApiKey) -> Result<Vec<(&'static str, String)>> {
        let mut plans = Vec::new();
        for (name, statement) in self.statements(key)? {
            plans.push((name, self.plan(statement).await?));
        }
        Ok(plans)
    }

    fn statements(&self, key: &ApiKey) -> Result<Vec<(&'static str, Statement)>> {
        let tables = &self.tables;
        let built = |statement: &dyn StatementBuilder| statement.build(&tables.backend);
        let mut hashes = vec![key.hash];
        hashes.extend((0..40).map(|number| KeyHash::of(&format!("{number}"))));
        let page = |is_of_owner: bool, is_first: bool| {
            let after = (!is_first).then(|| PagePosition::of(key));
            let owner_id = is_of_owner.then(|| key.owner_id.clone());
            query::page(tables, &PageRequest { owner_id, after, limit: 100 })
        };
        let events = |is_of_key: bool, is_of_owner: bool| {
            let after = Some(EventPosition { revision: key.revision, key_id: key.id });
            let (key_id, owner_id) = (is_of_key.then_some(key.id), is_of_owner.then(|| key.owner_id.clone()));
            query::event_page(tables, &EventPageRequest { key_id, owner_id, after, limit: 100 })
        };
        let [taken_ids, taken_hashes] = query::taken(tables, std::slice::from_ref(key));
        let [delete_usage, delete_key] = query::delete_key(tables, key.id);
        Ok(vec![
            ("a key by its hash", self.lookups.of(tables, &hashes[..1])),
            ("keys by their hashes", self.lookups.of(tables, &hashes)),
            ("a key by its id", built(&query::key_by_id(tables, key.id))),
            ("taken ids", built(&taken_ids)),
            ("taken hashes", built(&taken_hashes)),
            ("the first page of an owner", built(&page(true, true))),
            ("a later page of an owner", built(&page(true, false))),
            ("the first page of all", built(&page(false, true))),
            ("a later page of all", built(&page(false, false))),
            ("a replaced key", built(&query::replace_key(tables, key)?)),
            ("a deleted key's use", built(&delete_usage)),
            ("a deleted key", built(&delete_key)),
            ("last uses", built(&query::usage(tables, &[key.id]))),
            ("recorded uses", built(&query::record_usage(tables, &[(key.id, key.created_at)])?)),
            ("events after a revision", built(&query::events_from(tables, key.revision, 100))),
            ("events of all", built(&events(false, false))),
            ("events of a key", built(&events(true, false))),
            ("events of an owner", built(&events(false, true))),
            ("the oldest events", built(&query::lock_oldest_events(tables, 100))),
            ("pruned events", built(&query::delete_events_through(tables, Revision::new(1)))),
        ])
    }

    async fn plan(&self, mut statement: Statement) -> Result<String> {
        let explain = match self.tables.backend {
            DbBackend::Sqlite => "EXPLAIN QUERY PLAN ",
            _ => "EXPLAIN ",
        };
        statement.sql.insert_str(0, explain);
        let rows = self.writer.connection.query_all_raw(statement).await.map_err(from_db)?;
        let lines = rows.iter().map(|row| match self.tables.backend {
            DbBackend::Postgres => row.try_get_by_index(0),
            DbBackend::Sqlite => row.try_get("", "detail"),
            _ => {
                let text = |column| row.try_get::<Option<String>>("", column).map(Option::unwrap_or_default);
                Ok(format!(
                    "table={} type={} key={} extra={}",
                    text("table")?,
                    text("type")?,
                    text("key")?,
                    text("Extra")?
                ))
            }
        });
        Ok(lines.collect::<std::result::Result<Vec<String>, _>>().map_err(from_db)?.join("\n"))
    }
}
