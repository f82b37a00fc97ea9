//! Connections to MySQL and MariaDB.

use std::sync::Arc;
use std::time::Duration;

use sea_orm::sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlPoolOptions};
use sea_orm::sqlx::{self, AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, Row as _};
use sea_orm::{DatabaseConnection, SqlxMySqlConnector};

use super::SqlOptions;
use super::error::{from_driver, wrong_setting};
use super::pool_health::PoolHealth;
use crate::repository::Result;

pub(super) fn pool(
    server: &MySqlConnectOptions,
    health: &Arc<PoolHealth>,
    max_connections: u32,
    options: &SqlOptions,
) -> DatabaseConnection {
    let limits = Limits::of(options);
    let pool = health
        .guard(options, max_connections)
        .after_connect(move |connection, _| Box::pin(begin_session(connection, Some(limits))))
        .connect_lazy_with(server.clone().disable_statement_logging());
    SqlxMySqlConnector::from_sqlx_mysql_pool(pool)
}

pub(super) async fn probe(server: &MySqlConnectOptions, options: &SqlOptions) -> Result<()> {
    let connection = server.clone().disable_statement_logging().connect().await;
    let mut connection = connection.map_err(from_driver)?;
    begin_session(&mut connection, Some(Limits::of(options))).await.map_err(from_driver)?;
    connection.close().await.map_err(from_driver)
}

pub(super) fn single(server: &MySqlConnectOptions, options: &SqlOptions) -> DatabaseConnection {
    let pool = MySqlPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(options.pool.connect_timeout)
        .idle_timeout(None)
        .max_lifetime(None)
        .after_connect(|connection, _| Box::pin(begin_session(connection, None)))
        .connect_lazy_with(server.clone().disable_statement_logging());
    SqlxMySqlConnector::from_sqlx_mysql_pool(pool)
}

/// Timeouts of statements and of their waits for locks.
#[derive(Clone, Copy, Debug)]
struct Limits {
    timeout: Duration,
    lock_timeout: Duration,
}

impl Limits {
    fn of(options: &SqlOptions) -> Self {
        Self { timeout: options.timeout, lock_timeout: options.lock_timeout }
    }
}

/// Sets the session settings that every connection needs, whatever the defaults of the server are, and
/// verifies them.
///
/// A value that is too long for its column is an error and never truncated. With READ COMMITTED, a change
/// that waited for another one reads its result, and no gaps between rows are locked. Each statement outside
/// of a transaction commits by itself, and the end of a transaction does not begin another one. Results are
/// not limited to a number of rows. On a Galera cluster, a read waits until its node has applied what the
/// others committed.
///
/// # Errors
/// [`sqlx::Error::Configuration`] names a setting that still has another value.
async fn begin_session(connection: &mut MySqlConnection, limits: Option<Limits>) -> sqlx::Result<()> {
    let row = connection.fetch_one("SELECT VERSION()").await?;
    let is_mariadb = row.try_get::<String, _>(0)?.contains("MariaDB");
    let isolation = if is_mariadb { "tx_isolation" } else { "transaction_isolation" };
    let mut wanted = vec![
        ("autocommit", "1".to_owned()),
        ("completion_type", "NO_CHAIN".to_owned()),
        ("sql_select_limit", u64::MAX.to_string()),
        (isolation, "READ-COMMITTED".to_owned()),
    ];
    // Only servers that can be part of a Galera cluster have this setting.
    let has_galera = connection.fetch_optional("SHOW VARIABLES LIKE 'wsrep_sync_wait'").await?.is_some();
    if has_galera {
        wanted.push(("wsrep_sync_wait", "1".to_owned()));
    }
    if let Some(limits) = limits {
        wanted.extend(limits.settings(is_mariadb));
    }
    wanted.push(("sql_mode", SQL_MODE.to_owned()));
    let set = wanted.iter().map(|(name, value)| match value.parse::<f64>() {
        Ok(_) => format!("SESSION {name} = {value}"),
        Err(_) => format!("SESSION {name} = '{value}'"),
    });
    let set: Vec<_> = set.collect();
    connection.execute(AssertSqlSafe(format!("SET {}", set.join(", ")))).await?;

    // Texts are sent as UTF-8, so the server must not interpret them in another encoding.
    wanted.push(("character_set_client", "utf8mb4".to_owned()));
    wanted.push(("character_set_connection", "utf8mb4".to_owned()));
    let columns: Vec<_> = wanted.iter().map(|(name, _)| format!("CONVERT(@@SESSION.{name}, CHAR)")).collect();
    let row = connection.fetch_one(AssertSqlSafe(format!("SELECT {}", columns.join(", ")))).await?;
    for (at, (name, wanted)) in wanted.iter().enumerate() {
        let value: String = row.try_get(at)?;
        if !is_set(&value, wanted) {
            return Err(wrong_setting(name, &value, wanted));
        }
    }
    Ok(())
}

/// Rejects values that don't fit their column, and disables other SQL dialects, such as ORACLE. sqlx needs
/// the first and the last mode. The server returns the modes in this order.
const SQL_MODE: &str = "PIPES_AS_CONCAT,STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION";

/// Returns whether the server's `value` of a setting equals `wanted`.
fn is_set(value: &str, wanted: &str) -> bool {
    // MariaDB returns words for a boolean, MySQL returns numbers.
    let value = if value == "ON" { "1" } else { value };
    match (value.parse::<f64>(), wanted.parse::<f64>()) {
        (Ok(value), Ok(wanted)) => value.total_cmp(&wanted).is_eq(),
        _ => value == wanted,
    }
}

impl Limits {
    /// Returns the settings by which the server aborts statements that exceed the timeout (on MySQL, only
    /// reads) and, on MariaDB, idle transactions.
    fn settings(self, is_mariadb: bool) -> Vec<(&'static str, String)> {
        let lock_seconds = self.lock_timeout.as_millis().div_ceil(1_000).max(1).to_string();
        let millis = self.timeout.as_millis().max(1);
        let mut settings = vec![("innodb_lock_wait_timeout", lock_seconds.clone())];
        if is_mariadb {
            settings.push(("max_statement_time", format!("{}.{:03}", millis / 1_000, millis % 1_000)));
            settings.push(("idle_transaction_timeout", lock_seconds));
        } else {
            settings.push(("max_execution_time", millis.to_string()));
        }
        settings
    }
}
