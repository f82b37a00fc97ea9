//! Connections to PostgreSQL.

mod default_schema;
mod listener;
mod session;

use std::sync::Arc;

use sea_orm::sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sea_orm::sqlx::{ConnectOptions as _, Connection as _};
use sea_orm::{DatabaseConnection, SqlxPostgresConnector};

use self::session::Session;
use super::SqlOptions;
use super::error::from_driver;
use super::pool_health::PoolHealth;
use crate::repository::RepositoryError;

pub(super) use self::default_schema::default_schema;
pub(super) use self::listener::wake_ups;

pub(super) fn pool(
    server: &PgConnectOptions,
    health: &Arc<PoolHealth>,
    max_connections: u32,
    options: &SqlOptions,
) -> DatabaseConnection {
    let session = Session::with_limits(options);
    let pool = health
        .guard(options, max_connections)
        .after_connect(move |connection, _| {
            let session = session.clone();
            Box::pin(async move { session.begin(connection).await })
        })
        .connect_lazy_with(named(server));
    SqlxPostgresConnector::from_sqlx_postgres_pool(pool)
}

pub(super) async fn probe(server: &PgConnectOptions, options: &SqlOptions) -> Result<(), RepositoryError> {
    let mut connection = named(server).connect().await.map_err(from_driver)?;
    Session::with_limits(options).begin(&mut connection).await.map_err(from_driver)?;
    connection.close().await.map_err(from_driver)
}

/// Returns a pool with one connection, whose statements have no timeout.
pub(super) fn single(server: &PgConnectOptions, options: &SqlOptions) -> DatabaseConnection {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(options.pool.connect_timeout)
        .idle_timeout(None)
        .max_lifetime(None)
        .after_connect(|connection, _| Box::pin(async move { Session::new().begin(connection).await }))
        .connect_lazy_with(named(server));
    SqlxPostgresConnector::from_sqlx_postgres_pool(pool)
}

fn named(server: &PgConnectOptions) -> PgConnectOptions {
    // The driver would send `extra_float_digits` as a startup parameter, which PgBouncer rejects by default.
    let server = server.clone().disable_statement_logging().extra_float_digits(None);
    if server.get_application_name().is_none() { server.application_name("keyvouch") } else { server }
}
