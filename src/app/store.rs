//! From `[store]` to a repository.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use tokio::runtime::Handle;

use crate::config::{StoreConfig, StorePlace};
use crate::domain::{Entropy, SystemEntropy};
use crate::repository::{KeyRepository, MemoryRepository, OnRuntime, SqlOptions, SqlRepository};
use crate::telemetry::error_chain;

/// A repository, and what has to be closed behind it.
#[derive(Debug)]
pub struct Store {
    /// Where keys are kept; its `Display` is the stack.
    pub repository: Arc<dyn KeyRepository>,
    sql: Option<SqlRepository>,
}

impl Store {
    /// A store that needs no closing.
    pub fn new(repository: Arc<dyn KeyRepository>) -> Self {
        Self { repository, sql: None }
    }

    /// Opens the store of `config`, its tables up to date.
    pub(super) async fn open(config: &StoreConfig, entropy: &Arc<dyn Entropy>) -> Result<Self> {
        match config.place()? {
            StorePlace::Memory => {
                tracing::warn!(
                    "keys are kept in memory (store.url = \"memory:\"): they are lost when the server ends"
                );
                Ok(Self::new(Arc::new(MemoryRepository::new())))
            }
            StorePlace::Sqlite(path) => {
                let options = SqlOptions { timeout: config.timeout.0, entropy: Arc::clone(entropy) };
                let sql = open_file(&path, options).await?;
                bring_up_to_date(&sql, config.auto_migrate).await?;
                let repository = Arc::new(OnRuntime::new(sql.clone(), Handle::current()));
                Ok(Self { repository, sql: Some(sql) })
            }
        }
    }

    pub(super) async fn close(&self) {
        if let Some(sql) = &self.sql
            && let Err(error) = sql.close().await
        {
            tracing::warn!(error = %error_chain(&error), "the store was not closed cleanly");
        }
    }
}

/// The SQL database of `config`, its tables as they are; `None` for a store that has none.
pub async fn open_sql(config: &StoreConfig) -> Result<Option<SqlRepository>> {
    match config.place()? {
        StorePlace::Memory => Ok(None),
        StorePlace::Sqlite(path) => {
            let options = SqlOptions { timeout: config.timeout.0, entropy: Arc::new(SystemEntropy) };
            open_file(&path, options).await.map(Some)
        }
    }
}

async fn open_file(path: &Path, options: SqlOptions) -> Result<SqlRepository> {
    let opened = SqlRepository::open_sqlite(path, options).await;
    opened.with_context(|| format!("can't open the SQLite file {} (store.url)", path.display()))
}

async fn bring_up_to_date(sql: &SqlRepository, auto_migrate: bool) -> Result<()> {
    let pending = sql.pending_migrations().await.context("can't read the database's schema")?;
    if pending.is_empty() {
        return Ok(());
    }
    if !auto_migrate {
        bail!(
            "the database's schema is behind by {}: run `keyvouch migrate up`, or set store.auto_migrate = true",
            pending.join(", ")
        );
    }
    let applied = sql.migrate().await.context("can't bring the database's schema up to date")?;
    tracing::info!(migrations = applied.join(", "), "the database's schema was brought up to date");
    Ok(())
}
