//! Connections to MySQL and MariaDB.

use std::sync::Arc;
use std::time::Duration;

use sea_orm::sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlPoolOptions};
use sea_orm::sqlx::{self, AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, Row as _};
use sea_orm::{DatabaseConnection, SqlxMySqlConnector};

use super::SqlOptions;
use super::error::from_driver;
use super::pool::PoolHealth;
use crate::repository::Result;

pub(super) fn pool(
    server: &MySqlConnectOptions,
    health: &Arc<PoolHealth>,
    max_connections: u32,
    options: &SqlOptions,
) -> DatabaseConnection {
    let (timeout, lock_timeout) = (options.timeout, options.lock_timeout);
    let pool = health
        .guard(options, max_connections)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                let is_mariadb = begin_session(connection).await?;
                limit_session(connection, is_mariadb, timeout, lock_timeout).await
            })
        })
        .connect_lazy_with(server.clone().disable_statement_logging());
    SqlxMySqlConnector::from_sqlx_mysql_pool(pool)
}

pub(super) async fn probe(server: &MySqlConnectOptions) -> Result<()> {
    let connection = server.clone().disable_statement_logging().connect().await.map_err(from_driver)?;
    connection.close().await.map_err(from_driver)
}

pub(super) fn single(server: &MySqlConnectOptions, options: &SqlOptions) -> DatabaseConnection {
    let pool = MySqlPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(options.pool.connect_timeout)
        .idle_timeout(None)
        .max_lifetime(None)
        .after_connect(|connection, _| Box::pin(async move { begin_session(connection).await.map(drop) }))
        .connect_lazy_with(server.clone().disable_statement_logging());
    SqlxMySqlConnector::from_sqlx_mysql_pool(pool)
}

/// What is too long for its column is an error and never cut off, whatever the server's default is. READ COMMITTED: a
/// change that waited for another one sees what that wrote, and no gaps between rows are locked. Returns whether the
/// server is MariaDB.
async fn begin_session(connection: &mut MySqlConnection) -> sqlx::Result<bool> {
    let row = connection.fetch_one("SELECT VERSION()").await?;
    let is_mariadb = row.try_get::<String, _>(0)?.contains("MariaDB");
    let isolation = if is_mariadb { "tx_isolation" } else { "transaction_isolation" };
    let session = format!(
        "SET SESSION sql_mode = CONCAT(@@SESSION.sql_mode, ',STRICT_ALL_TABLES'), \
         SESSION {isolation} = 'READ-COMMITTED'"
    );
    connection.execute(AssertSqlSafe(session)).await?;
    Ok(is_mariadb)
}

/// The server ends a statement of ours that takes too long (MySQL: reads alone), and, on MariaDB, a transaction that
/// stands still.
async fn limit_session(
    connection: &mut MySqlConnection,
    is_mariadb: bool,
    timeout: Duration,
    lock_timeout: Duration,
) -> sqlx::Result<()> {
    let lock_seconds = lock_timeout.as_millis().div_ceil(1_000).max(1);
    let millis = timeout.as_millis().max(1);
    let limits = if is_mariadb {
        format!(
            "SET SESSION max_statement_time = {millis} / 1000, SESSION innodb_lock_wait_timeout = {lock_seconds}, \
             SESSION idle_transaction_timeout = {lock_seconds}"
        )
    } else {
        format!(
            "SET SESSION max_execution_time = {millis}, SESSION innodb_lock_wait_timeout = {lock_seconds}"
        )
    };
    connection.execute(AssertSqlSafe(limits)).await.map(drop)
}
