//! The settings of PostgreSQL sessions and transactions.

use std::collections::HashMap;
use std::time::Duration;

use sea_orm::sqlx::postgres::PgConnection;
use sea_orm::sqlx::{self, AssertSqlSafe, Executor as _, Row as _};

use crate::repository::sql::SqlOptions;
use crate::repository::sql::error::wrong_setting;

/// A change that waited for another one reads its result.
const ISOLATION: (&str, &str) = ("default_transaction_isolation", "read committed");
/// A policy that would hide rows causes an error instead of missing keys.
const ROW_SECURITY: (&str, &str) = ("row_security", "off");
/// A statement that is prepared while a table is small gets a plan that reads the whole table, and the plan is
/// kept until the statistics change. Measured: 1,600 imported keys per second instead of 30,000. Every statement
/// here has an index.
const SEQUENTIAL_SCANS: (&str, &str) = ("enable_seqscan", "off");

/// The settings that statements outside of a transaction need. Behind a pooler in transaction mode, they have to be
/// defaults of the role.
pub(super) const OF_SINGLE_STATEMENTS: [(&str, &str); 3] = [ISOLATION, ROW_SECURITY, SEQUENTIAL_SCANS];

/// The settings that Keyvouch needs, whatever the defaults of the server, the database and the role are. They are
/// set after connecting, because poolers reject or drop startup parameters.
#[derive(Clone, Debug)]
pub(super) struct Session {
    settings: Vec<(&'static str, String)>,
}

impl Session {
    /// Returns settings without limits.
    pub(super) fn new() -> Self {
        let settings = [ISOLATION, ROW_SECURITY].map(|(name, value)| (name, value.to_owned()));
        Self { settings: settings.into() }
    }

    pub(super) fn with_limits(options: &SqlOptions) -> Self {
        let millis = |duration: Duration| duration.as_millis().max(1).to_string();
        let mut session = Self::new();
        session.settings.extend([
            ("statement_timeout", millis(options.timeout)),
            ("lock_timeout", millis(options.lock_timeout)),
            ("idle_in_transaction_session_timeout", millis(options.lock_timeout)),
            (SEQUENTIAL_SCANS.0, SEQUENTIAL_SCANS.1.to_owned()),
        ]);
        session
    }

    /// Sets all settings for the session, and verifies them.
    ///
    /// # Errors
    /// [`sqlx::Error::Configuration`] names a setting that still has another value.
    pub(super) async fn begin(&self, connection: &mut PgConnection) -> sqlx::Result<()> {
        // Names and values are constants or numbers.
        let calls: Vec<_> = self
            .settings
            .iter()
            .map(|(name, value)| format!("set_config('{name}', '{value}', false)"))
            .collect();
        connection.execute(AssertSqlSafe(format!("SELECT {}", calls.join(", ")))).await?;
        let wanted = self.settings.iter().map(|(name, value)| (*name, value.as_str()));
        verify(connection, wanted.collect()).await
    }

    /// Returns the statements that set all settings for a transaction which has just begun. They end with it.
    pub(super) fn of_transaction(&self) -> String {
        let statements = self.settings.iter().map(|(name, value)| match *name {
            // The transaction has begun with the default.
            name if name == ISOLATION.0 => format!("SET TRANSACTION ISOLATION LEVEL {value}"),
            name => format!("SET LOCAL {name} = '{value}'"),
        });
        statements.collect::<Vec<_>>().join("; ")
    }

    /// Begins a transaction, verifies its settings, and rolls it back.
    ///
    /// # Errors
    /// [`sqlx::Error::Configuration`] names a setting that has another value in the transaction.
    pub(super) async fn try_transaction(&self, connection: &mut PgConnection) -> sqlx::Result<()> {
        connection.execute(AssertSqlSafe(format!("BEGIN; {}", self.of_transaction()))).await?;
        let wanted = self.settings.iter().map(|(name, value)| match *name {
            name if name == ISOLATION.0 => ("transaction_isolation", value.as_str()),
            name => (name, value.as_str()),
        });
        let outcome = verify(connection, wanted.collect()).await;
        connection.execute("ROLLBACK").await?;
        outcome
    }
}

/// Checks that settings have these values, and that the database stores texts as UTF-8.
async fn verify(connection: &mut PgConnection, mut wanted: HashMap<&str, &str>) -> sqlx::Result<()> {
    // In another encoding, some valid names and owners could not be stored.
    wanted.insert("server_encoding", "UTF8");
    let names: Vec<_> = wanted.keys().map(|name| format!("'{name}'")).collect();
    let read =
        format!("SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN ({})", names.join(", "));
    for row in connection.fetch_all(AssertSqlSafe(read)).await? {
        let (name, value): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        if let Some(wanted) = wanted.remove(name.as_str())
            && wanted != value
        {
            return Err(wrong_setting(&name, &value, wanted));
        }
    }
    match wanted.into_iter().next() {
        None => Ok(()),
        Some((name, wanted)) => Err(wrong_setting(name, "unknown", wanted)),
    }
}
