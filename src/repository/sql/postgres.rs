//! Connections to PostgreSQL.

mod default_schema;
mod listener;
mod pooler;
mod session;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use sea_orm::sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sea_orm::sqlx::{self, ConnectOptions as _, Connection as _};
use sea_orm::{DatabaseConnection, SqlxPostgresConnector};

use self::session::Session;
use super::error::from_driver;
use super::options::{Pooling, SqlOptions};
use super::pool_health::PoolHealth;
use crate::repository::RepositoryError;

pub(super) use self::listener::{delivers, wake_ups};
pub(super) use self::pooler::{NO_PREPARED_STATEMENTS, check_count, check_listening, inspect};

/// Returns the statements that each transaction begins with, if its session has not the settings.
pub(super) fn transaction_settings(options: &SqlOptions) -> Option<Arc<str>> {
    match options.pooling {
        Pooling::Session => None,
        Pooling::Transaction => Some(Session::with_limits(options).of_transaction().into()),
    }
}

pub(super) fn pool(
    server: &PgConnectOptions,
    health: &Arc<PoolHealth>,
    max_connections: u32,
    options: &SqlOptions,
) -> DatabaseConnection {
    let session = (options.pooling == Pooling::Session).then(|| Session::with_limits(options));
    let pool = health
        .guard(options, max_connections)
        .after_connect(move |connection, _| begin(session.clone(), connection))
        .connect_lazy_with(named(server));
    SqlxPostgresConnector::from_sqlx_postgres_pool(pool)
}

pub(super) async fn probe(server: &PgConnectOptions, options: &SqlOptions) -> Result<(), RepositoryError> {
    let mut connection = named(server).connect().await.map_err(from_driver)?;
    try_settings(&mut connection, options).await?;
    connection.close().await.map_err(from_driver)
}

/// Verifies that a connection accepts the settings. They are left in the session if it is not shared.
async fn try_settings(connection: &mut PgConnection, options: &SqlOptions) -> Result<(), RepositoryError> {
    let session = Session::with_limits(options);
    let outcome = match options.pooling {
        Pooling::Session => session.begin(connection).await,
        Pooling::Transaction => session.try_transaction(connection).await,
    };
    outcome.map_err(from_driver)
}

/// Returns a pool with one connection, whose statements have no timeout.
pub(super) fn single(server: &PgConnectOptions, options: &SqlOptions) -> DatabaseConnection {
    let session = (options.pooling == Pooling::Session).then(Session::new);
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(options.pool.connect_timeout)
        .idle_timeout(None)
        .max_lifetime(None)
        .after_connect(move |connection, _| begin(session.clone(), connection))
        .connect_lazy_with(named(server));
    SqlxPostgresConnector::from_sqlx_postgres_pool(pool)
}

/// Begins the session of a new connection. `None` means that the connection has no session of its own.
fn begin(session: Option<Session>, connection: &mut PgConnection) -> BoxFuture<'_, sqlx::Result<()>> {
    Box::pin(async move {
        match session {
            Some(session) => session.begin(connection).await,
            None => Ok(()),
        }
    })
}

fn named(server: &PgConnectOptions) -> PgConnectOptions {
    // The driver would send `extra_float_digits` as a startup parameter, which PgBouncer rejects by default.
    let server = server.clone().disable_statement_logging().extra_float_digits(None);
    if server.get_application_name().is_none() { server.application_name("keyvouch") } else { server }
}
