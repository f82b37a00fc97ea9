//! Opens the backend of `[store]`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::config::{StoreConfig, StorePlace};
use crate::domain::{BootClock, Entropy, Stopwatch as _, SystemEntropy};
use crate::repository::{self, Backend, ErrorKind, MemoryRepository, RedisRepository, SqlRepository};
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
    /// Opens the backend of `config`, and migrates its schema if that is allowed.
    pub(super) async fn open(config: &StoreConfig, entropy: &Arc<dyn Entropy>) -> Result<Self> {
        match config.place()? {
            StorePlace::Memory => {
                tracing::warn!(
                    "keys are kept in memory (store.url = \"memory:\"): they are lost when the server ends"
                );
                Ok(Self { backend: MemoryRepository::new().into(), pools: None })
            }
            StorePlace::Sqlite(_) | StorePlace::Server => {
                let sql = connect(config, Arc::clone(entropy)).await?;
                bring_up_to_date(&sql, config.migrates_itself()).await?;
                let counted = sql.clone();
                Ok(Self { backend: sql.into(), pools: Some(Box::new(move || counted.connections())) })
            }
            StorePlace::Redis => {
                let options = config.redis_options(Arc::clone(entropy));
                let open = async || RedisRepository::open(config.url.expose(), options.clone()).await;
                let opened = patiently(config.connect_timeout.0, open).await;
                let redis = opened.context("can't use the Redis server (store.url)")?;
                Ok(Self { backend: redis.into(), pools: None })
            }
        }
    }
}

/// Opens the SQL database of `config` without changing its schema. Returns `None` if the backend is not an
/// SQL database.
///
/// # Errors
/// Returns an error if the settings are not valid, or if the database can't be opened within
/// `store.connect_timeout`.
pub async fn open_sql(config: &StoreConfig) -> Result<Option<SqlRepository>> {
    match config.place()? {
        StorePlace::Memory | StorePlace::Redis => Ok(None),
        StorePlace::Sqlite(_) | StorePlace::Server => {
            connect(config, Arc::new(SystemEntropy)).await.map(Some)
        }
    }
}

async fn connect(config: &StoreConfig, entropy: Arc<dyn Entropy>) -> Result<SqlRepository> {
    let options = config.sql_options(entropy)?;
    let sql = if let StorePlace::Sqlite(path) = config.place()? {
        let opened = SqlRepository::open_sqlite(&path, options).await;
        opened.with_context(|| format!("can't open the SQLite file {} (store.url)", path.display()))?
    } else {
        let open = async || SqlRepository::open(config.url.expose(), options.clone()).await;
        let opened = patiently(config.connect_timeout.0, open).await;
        opened.context("can't connect to the database (store.url)")?
    };
    match config.sql.replica_url.expose() {
        "" => Ok(sql),
        url => {
            let open = async || sql.clone().with_replica(url).await;
            let opened = patiently(config.connect_timeout.0, open).await;
            opened.context("can't connect to the replica (store.sql.replica_url)")
        }
    }
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
            tracing::warn!(error = %error_chain(&error), ?patience, "the store can't be reached yet; trying again");
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
