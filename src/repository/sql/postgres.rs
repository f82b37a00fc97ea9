//! Connections to PostgreSQL.

use std::sync::Arc;
use std::time::Duration;

use sea_orm::sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sea_orm::sqlx::{ConnectOptions as _, Connection as _};
use sea_orm::{DatabaseConnection, SqlxPostgresConnector};

use super::SqlOptions;
use super::error::from_driver;
use super::pool::PoolHealth;
use crate::repository::Result;

pub(super) fn pool(
    server: &PgConnectOptions,
    health: &Arc<PoolHealth>,
    max_connections: u32,
    options: &SqlOptions,
) -> DatabaseConnection {
    let millis = |duration: Duration| duration.as_millis().max(1).to_string();
    let session = [
        ("statement_timeout", millis(options.timeout)),
        ("lock_timeout", millis(options.lock_timeout)),
        ("idle_in_transaction_session_timeout", millis(options.lock_timeout)),
        // A statement that is prepared while a table is small is planned to read all of it, and that plan is kept until the
        // statistics change: measured, 1,600 imported keys a second instead of 30,000. Every statement here has an index.
        ("enable_seqscan", "off".to_owned()),
    ];
    let server = named(server, options).options(session);
    let pool = health.guard(options, max_connections).connect_lazy_with(server);
    SqlxPostgresConnector::from_sqlx_postgres_pool(pool)
}

pub(super) async fn probe(server: &PgConnectOptions) -> Result<()> {
    let connection = server.clone().disable_statement_logging().connect().await.map_err(from_driver)?;
    connection.close().await.map_err(from_driver)
}

pub(super) fn single(server: &PgConnectOptions, options: &SqlOptions) -> DatabaseConnection {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(options.pool.connect_timeout)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_lazy_with(named(server, options));
    SqlxPostgresConnector::from_sqlx_postgres_pool(pool)
}

fn named(server: &PgConnectOptions, options: &SqlOptions) -> PgConnectOptions {
    let mut server = server.clone().disable_statement_logging();
    if server.get_application_name().is_none() {
        server = server.application_name("keyvouch");
    }
    match &options.schema {
        Some(schema) => server.options([("search_path", schema)]),
        None => server,
    }
}
