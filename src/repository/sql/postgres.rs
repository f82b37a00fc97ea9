//! Connections to PostgreSQL.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{BoxStream, StreamExt as _};
use sea_orm::sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPool, PgPoolOptions};
use sea_orm::sqlx::{self, AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, Row as _};
use sea_orm::{DatabaseConnection, SqlxPostgresConnector};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::SqlOptions;
use super::error::{from_driver, wrong_setting};
use super::pool_health::PoolHealth;
use crate::repository::RepositoryError;

/// Delay before listening again after a failure.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);

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

pub(super) fn single(server: &PgConnectOptions, options: &SqlOptions) -> DatabaseConnection {
    let pool = lazy_pool(options).idle_timeout(None).connect_lazy_with(named(server));
    SqlxPostgresConnector::from_sqlx_postgres_pool(pool)
}

/// Returns the options of a pool with one connection, whose statements have no timeout.
fn lazy_pool(options: &SqlOptions) -> PgPoolOptions {
    let session = Session::new(options);
    PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(options.pool.connect_timeout)
        .max_lifetime(None)
        .after_connect(move |connection, _| {
            let session = session.clone();
            Box::pin(async move { session.begin(connection).await })
        })
}

/// The settings that every connection needs, whatever the defaults of the server, the database and the role
/// are. They are set after connecting, because poolers reject or drop startup parameters.
#[derive(Clone, Debug)]
struct Session {
    settings: Vec<(&'static str, String)>,
}

impl Session {
    fn new(options: &SqlOptions) -> Self {
        let mut settings = vec![
            // A change that waited for another one reads its result.
            ("default_transaction_isolation", "read committed".to_owned()),
            // A policy that would hide rows causes an error instead of missing keys.
            ("row_security", "off".to_owned()),
        ];
        settings.extend(options.schema.clone().map(|schema| ("search_path", schema)));
        Self { settings }
    }

    fn with_limits(options: &SqlOptions) -> Self {
        let millis = |duration: Duration| duration.as_millis().max(1).to_string();
        let mut session = Self::new(options);
        session.settings.extend([
            ("statement_timeout", millis(options.timeout)),
            ("lock_timeout", millis(options.lock_timeout)),
            ("idle_in_transaction_session_timeout", millis(options.lock_timeout)),
            // A statement that is prepared while a table is small gets a plan that reads the whole table, and
            // the plan is kept until the statistics change. Measured: 1,600 imported keys per second instead
            // of 30,000. Every statement here has an index.
            ("enable_seqscan", "off".to_owned()),
        ]);
        session
    }

    /// Sets all settings and verifies them.
    ///
    /// # Errors
    /// [`sqlx::Error::Configuration`] names a setting that still has another value.
    async fn begin(&self, connection: &mut PgConnection) -> sqlx::Result<()> {
        // Names and values are constants or options, and a schema has no character that would have to be
        // quoted.
        let calls: Vec<_> = self
            .settings
            .iter()
            .map(|(name, value)| format!("set_config('{name}', '{value}', false)"))
            .collect();
        connection.execute(AssertSqlSafe(format!("SELECT {}", calls.join(", ")))).await?;
        let names: Vec<_> = self.settings.iter().map(|(name, _)| format!("'{name}'")).collect();
        let read = format!(
            "SELECT name, setting FROM pg_settings WHERE name IN ('server_encoding', {})",
            names.join(", ")
        );
        let rows = connection.fetch_all(AssertSqlSafe(read)).await?;
        let mut wanted: HashMap<&str, &str> =
            self.settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        // In another encoding, some valid names and owners could not be stored.
        wanted.insert("server_encoding", "UTF8");
        for row in rows {
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
}

/// Returns a stream that yields after notifications in `channel`, and when notifications may have been lost.
pub(super) fn wake_ups(
    server: &PgConnectOptions,
    options: &SqlOptions,
    channel: String,
) -> BoxStream<'static, ()> {
    let pool = lazy_pool(options).connect_lazy_with(named(server));
    // Capacity 1: pending wake-ups are coalesced.
    let (wake, woken) = mpsc::channel(1);
    tokio::spawn(async move {
        while !wake.is_closed() {
            // An error means that the connection was lost. Followers depend on polls until it is back.
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
        // A full channel already has a pending wake-up.
        let _ = wake.try_send(());
        // `None` means that the connection was lost, possibly with a notification.
        listener.try_recv().await?;
    }
}

fn named(server: &PgConnectOptions) -> PgConnectOptions {
    // The driver would send `extra_float_digits` as a startup parameter, which PgBouncer rejects by default.
    let server = server.clone().disable_statement_logging().extra_float_digits(None);
    if server.get_application_name().is_none() { server.application_name("keyvouch") } else { server }
}
