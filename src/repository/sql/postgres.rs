//! Connections to PostgreSQL.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{BoxStream, StreamExt as _};
use sea_orm::sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolOptions};
use sea_orm::sqlx::{self, ConnectOptions as _, Connection as _};
use sea_orm::{DatabaseConnection, SqlxPostgresConnector};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::SqlOptions;
use super::error::from_driver;
use super::pool::PoolHealth;
use crate::repository::RepositoryError;

/// How long after trouble it is listened anew.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);

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

pub(super) async fn probe(server: &PgConnectOptions) -> Result<(), RepositoryError> {
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

/// Yields after messages in `channel`, and when some may have been lost.
pub(super) fn wakes(
    server: &PgConnectOptions,
    options: &SqlOptions,
    channel: String,
) -> BoxStream<'static, ()> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(options.pool.connect_timeout)
        .max_lifetime(None)
        .connect_lazy_with(named(server, options));
    // One that waits stands for all that come meanwhile.
    let (wake, woken) = mpsc::channel(1);
    tokio::spawn(async move {
        while !wake.is_closed() {
            // An error means that there is no connection: then the next poll comes without a hint.
            tokio::select! {
                () = wake.closed() => return,
                _ = listen(&pool, &channel, &wake) => {}
            }
            tokio::time::sleep(LISTEN_PAUSE).await;
        }
    });
    ReceiverStream::new(woken).boxed()
}

async fn listen(pool: &PgPool, channel: &str, wake: &mpsc::Sender<()>) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(channel).await?;
    loop {
        // A full channel has one that waits.
        let _ = wake.try_send(());
        // `None`: the connection was lost, and with it perhaps a message.
        listener.try_recv().await?;
    }
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
