//! Opens the backend of `[store]`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::config::{Listening, Settings, SqlPlace, StoreBackend, StoreSettings};
use crate::domain::{BootClock, Entropy, Stopwatch as _};
use crate::repository::{
    self, Backend, ErrorKind, MemoryRepository, RedisOptions, RedisRepository, SqlOptions, SqlRepository,
};
use crate::telemetry::error_chain;

/// Reads the connections of each pool: the pool's name, the number of open connections, and the number of
/// idle ones among them.
pub(super) type PoolReader = Box<dyn Fn() -> [(&'static str, u32, usize); 2] + Send + Sync>;

/// An opened backend.
pub(super) struct OpenedBackend {
    pub(super) backend: Backend,
    /// Reads the number of connections, for metrics. `None` if the backend does not report it.
    pub(super) pools: Option<PoolReader>,
}

impl OpenedBackend {
    /// Opens the backend of `store`, and migrates its schema if that is allowed.
    pub(super) async fn open(store: &StoreSettings, entropy: &Arc<dyn Entropy>) -> Result<Self> {
        match &store.backend {
            StoreBackend::Memory => {
                tracing::warn!(
                    "keys are kept in memory (store.url = \"memory:\"): they are lost when the server ends"
                );
                Ok(Self { backend: MemoryRepository::new().into(), pools: None })
            }
            StoreBackend::Sql { place, options } => {
                let options = SqlOptions { entropy: Arc::clone(entropy), ..options.clone() };
                let sql = connect(place, options, store.connect_timeout).await?;
                let sql = listen(place, sql, store.connect_timeout).await?;
                bring_up_to_date(&sql, store.migrates_itself).await?;
                let counted = sql.clone();
                Ok(Self { backend: sql.into(), pools: Some(Box::new(move || counted.connections())) })
            }
            StoreBackend::Redis { url, options } => {
                let options = RedisOptions { entropy: Arc::clone(entropy), ..options.clone() };
                let open = async || RedisRepository::open(url.expose(), options.clone()).await;
                let opened = patiently(store.connect_timeout, open).await;
                let redis = opened.context("can't use the Redis server (store.url)")?;
                Ok(Self { backend: redis.into(), pools: None })
            }
        }
    }
}

/// Opens the SQL database of `settings` without changing its schema. Returns `None` if the backend is not an
/// SQL database.
///
/// # Errors
/// Returns an error if the database can't be opened within `store.connect_timeout`.
pub async fn open_sql(settings: &Settings) -> Result<Option<SqlRepository>> {
    match &settings.store.backend {
        StoreBackend::Memory | StoreBackend::Redis { .. } => Ok(None),
        StoreBackend::Sql { place, options } => {
            connect(place, options.clone(), settings.store.connect_timeout).await.map(Some)
        }
    }
}

async fn connect(place: &SqlPlace, options: SqlOptions, connect_timeout: Duration) -> Result<SqlRepository> {
    let (url, replica_url) = match place {
        SqlPlace::File(path) => {
            let opened = SqlRepository::open_sqlite(path, options).await;
            return opened
                .with_context(|| format!("can't open the SQLite file {} (store.url)", path.display()));
        }
        SqlPlace::Server { url, replica_url, .. } => (url, replica_url),
    };
    let open = async || SqlRepository::open(url.expose(), options.clone()).await;
    let sql = patiently(connect_timeout, open).await.context("can't connect to the database (store.url)")?;
    let Some(replica_url) = replica_url else { return Ok(sql) };
    let open = async || sql.clone().with_replica(replica_url.expose()).await;
    let opened = patiently(connect_timeout, open).await;
    opened.context("can't connect to the replica (store.sql.replica_url)")
}

/// Chooses the connection for notifications, and checks that the server provides enough connections to serve.
async fn listen(place: &SqlPlace, sql: SqlRepository, connect_timeout: Duration) -> Result<SqlRepository> {
    let SqlPlace::Server { listening, .. } = place else { return Ok(sql) };
    let sql = match listening {
        Listening::ByStore => sql,
        Listening::Off => {
            tracing::info!(
                "no notifications are received (store.sql.listen_url = \"off\"): changes of other replicas are applied after up to \
                 feed.poll_interval"
            );
            sql.without_notifications()
        }
        Listening::ByUrl(url) => sql
            .with_listen_url(url.expose())
            .await
            .context("can't receive notifications (store.sql.listen_url)")?,
    };
    let checked = patiently(connect_timeout, async || sql.check_connections().await).await;
    checked.context("can't open the connections that a replica needs (store.url)")?;
    Ok(sql)
}

/// Delay before another attempt to reach a backend.
const PAUSE: Duration = Duration::from_millis(500);

/// Opens a backend, and retries for up to `patience` while the backend is unavailable, because servers and
/// backends of a deployment start in any order.
async fn patiently<T>(
    patience: Duration,
    mut open: impl AsyncFnMut() -> repository::Result<T>,
) -> repository::Result<T> {
    let begun = BootClock.moment();
    let mut is_first = true;
    loop {
        let error = match open().await {
            Err(error) if error.kind() == ErrorKind::Unavailable => error,
            outcome => return outcome,
        };
        if BootClock.moment().since(begun) + PAUSE >= patience {
            return Err(error);
        }
        if std::mem::take(&mut is_first) {
            tracing::warn!(error = %error_chain(&error), ?patience, "the backend can't be reached yet; trying again");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn bring_up_to_date(sql: &SqlRepository, auto_migrate: bool) -> Result<()> {
    let state = sql.schema_state().await.context("can't read the database's schema")?;
    let breaking: Vec<_> = state.breaking().collect();
    if !breaking.is_empty() {
        bail!(
            "the database's schema is that of a newer release, which this one can't work with ({}): use a newer release",
            breaking.join(", ")
        );
    }
    if state.pending.is_empty() {
        if !state.unknown.is_empty() {
            let unknown = state.unknown.join(", ");
            tracing::info!(unknown, "the database's schema is newer than this release, and compatible");
        }
        return Ok(());
    }
    if !auto_migrate {
        bail!(
            "the database's schema is behind by {} ({}): run `keyvouch migrate up`, or set store.auto_migrate = true",
            count(state.pending.len()),
            state.pending.join(", ")
        );
    }
    let applied = sql.migrate().await.context("can't bring the database's schema up to date")?;
    tracing::info!(migrations = applied.join(", "), "the database's schema is up to date");
    Ok(())
}

fn count(migrations: usize) -> String {
    match migrations {
        1 => "1 migration".to_owned(),
        more => format!("{more} migrations"),
    }
}
