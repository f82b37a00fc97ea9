//! Notifications of changes, which PostgreSQL delivers to a connection of their own.

use std::time::Duration;

use data_encoding::HEXLOWER;
use futures_util::stream::{BoxStream, StreamExt as _};
use sea_orm::sqlx;
use sea_orm::sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolOptions};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::named;
use crate::repository::sql::SqlOptions;
use crate::repository::sql::error::from_driver;
use crate::repository::{ErrorKind, RepositoryError, Result};
use crate::telemetry::error_chain;

/// Delay before listening again after a failure.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);

/// Returns a stream that yields after notifications in `channel`, and when notifications may have been lost.
pub(in crate::repository::sql) fn wake_ups(
    server: &PgConnectOptions,
    options: &SqlOptions,
    channel: String,
) -> BoxStream<'static, ()> {
    let pool = listener_pool(server, options);
    // Capacity 1: pending wake-ups are coalesced.
    let (wake, woken) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut is_reported = false;
        while !wake.is_closed() {
            // An error means that the connection was lost. Followers depend on polls until it is back.
            let lost = tokio::select! {
                () = wake.closed() => return,
                lost = listen(&pool, &channel, &wake, &mut is_reported) => lost,
            };
            if let Err(error) = lost
                && !std::mem::replace(&mut is_reported, true)
            {
                tracing::warn!(
                    error = %error_chain(&error),
                    "can't listen for notifications; changes of other replicas are applied by polls (feed.poll_interval) until then"
                );
            }
            tokio::time::sleep(LISTEN_PAUSE).await;
        }
    });
    ReceiverStream::new(woken).boxed()
}

/// Returns whether a notification that `send` sends in the channel that it is given arrives at a connection to
/// `server`. If not, `server` has another database, or is a standby, which delivers none.
///
/// # Errors
/// The errors of connecting and of `send`.
pub(in crate::repository::sql) async fn delivers(
    server: &PgConnectOptions,
    options: &SqlOptions,
    send: impl AsyncFnOnce(String) -> Result<()>,
) -> Result<bool> {
    let mut random = [0; 8];
    options.entropy.fill(&mut random)?;
    let channel = format!("keyvouch_check_{}", HEXLOWER.encode(&random));
    let pool = listener_pool(server, options);
    let mut listener = PgListener::connect_with(&pool).await.map_err(from_driver)?;
    listener.listen(&channel).await.map_err(from_driver)?;
    send(channel).await?;
    // A lost connection, which is `None`, can have lost the notification, so it is an error of its own.
    match tokio::time::timeout(options.pool.connect_timeout, listener.try_recv()).await {
        Ok(Ok(Some(_))) => Ok(true),
        Ok(Ok(None)) => Err(RepositoryError::new(ErrorKind::Unavailable, "the connection was lost")),
        Ok(Err(error)) => Err(from_driver(error)),
        Err(_) => Ok(false),
    }
}

/// Returns a pool of one connection. A listener needs no settings.
fn listener_pool(server: &PgConnectOptions, options: &SqlOptions) -> PgPool {
    PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(options.pool.connect_timeout)
        .max_lifetime(None)
        .connect_lazy_with(named(server))
}

async fn listen(
    pool: &PgPool,
    channel: &str,
    wake: &mpsc::Sender<()>,
    is_reported: &mut bool,
) -> sqlx::Result<()> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(channel).await?;
    *is_reported = false;
    loop {
        // A full channel already has a pending wake-up.
        let _ = wake.try_send(());
        // `None` means that the connection was lost, possibly with a notification.
        listener.try_recv().await?;
    }
}
