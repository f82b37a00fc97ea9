//! Running reads and changes: their deadlines, retries, and the reactions of the pools to errors.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use sea_orm::sea_query::SelectStatement;
use sea_orm::{ConnectionTrait as _, StatementBuilder, TryGetable};

use super::SqlRepository;
use super::error::{Remedy, from_db, remedy};
use super::lookup;
use super::operations::Operation;
use super::pool::Pool;
use super::transaction::ChangeTransaction;
use crate::domain::{ApiKey, ChangeContext, KeyHash};
use crate::repository::{ErrorKind, RepositoryError, Result};

/// Maximum number of attempts of a change that the database rolled back because of a conflict.
const MAX_ATTEMPTS: usize = 5;

impl SqlRepository {
    /// Runs `call`, a call on `pool`, within the timeout of the options.
    pub(super) async fn within_deadline<T>(
        &self,
        pool: &Pool,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let mut call = pin!(call);
        match tokio::time::timeout(self.options.timeout, &mut call).await {
            Ok(outcome) => {
                if let Err(error) = &outcome
                    && self.database.must_replace_connections_after(error)
                {
                    pool.health.replace_all();
                }
                match outcome {
                    Err(error) => Err(pool.explain(error, &self.options).await),
                    outcome => outcome,
                }
            }
            Err(elapsed) => {
                // Mark the pool before the call is dropped and returns its connection.
                pool.health.suspect();
                Err(RepositoryError::new(ErrorKind::Timeout, elapsed))
            }
        }
    }

    /// Runs a read on the primary, and repeats it once if its connection was lost or a conflict ended it.
    pub(super) async fn read<T, F>(&self, read: impl Fn(Pool) -> F + Send + Sync) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>> + Send,
    {
        self.read_from(&self.reader, read).await
    }

    /// Runs a read on `pool`, and repeats it once if its connection was lost or a conflict ended it.
    pub(super) async fn read_from<T, F>(
        &self,
        pool: &Pool,
        read: impl Fn(Pool) -> F + Send + Sync,
    ) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>> + Send,
    {
        self.database.check()?;
        self.within_deadline(pool, async {
            match read(pool.clone()).await {
                Err(error) => match remedy(&error) {
                    Remedy::TestConnections => {
                        pool.health.suspect();
                        read(pool.clone()).await
                    }
                    Remedy::Retry => read(pool.clone()).await,
                    Remedy::Reconnect | Remedy::None => Err(error),
                },
                outcome => outcome,
            }
        })
        .await
    }

    /// Runs a read that only a primary can answer. `None` from `read` means that the server rejects changes.
    pub(super) async fn read_primary<T, F>(&self, read: impl Fn(Pool) -> F + Send + Sync) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<Option<T>>> + Send,
    {
        self.read(read).await?.ok_or_else(|| {
            if self.reader.health.leave_server() {
                self.writer.health.replace_all();
            }
            RepositoryError::new(ErrorKind::Unavailable, "the database server is read-only")
        })
    }

    pub(super) async fn find_many(&self, hashes: &[KeyHash]) -> Result<Vec<Result<Option<ApiKey>>>> {
        self.read(|pool| lookup::find(pool, &self.tables, &self.lookups, hashes)).await
    }

    /// Makes a change. Retries it if the database rolled it back because of a conflict, or if the server
    /// rejects writes.
    pub(super) async fn write<O: Operation>(
        &self,
        operation: O,
        context: &ChangeContext,
    ) -> Result<O::Output> {
        self.within_deadline(&self.writer, async {
            for _ in 1..MAX_ATTEMPTS {
                match self.try_write(&operation, context).await {
                    Err(error) => match remedy(&error) {
                        Remedy::Retry => {}
                        Remedy::Reconnect if self.writer.health.leave_server() => {
                            self.reader.health.replace_all();
                        }
                        Remedy::TestConnections => {
                            self.writer.health.suspect();
                            return Err(error);
                        }
                        Remedy::Reconnect | Remedy::None => return Err(error),
                    },
                    outcome => return outcome,
                }
            }
            self.try_write(&operation, context).await
        })
        .await
    }

    /// Runs a statement that does not change a key.
    pub(super) async fn write_once(&self, statement: &impl StatementBuilder) -> Result<()> {
        self.within_deadline(&self.writer, async {
            self.database.check()?;
            self.writer.execute(statement).await
        })
        .await
    }

    /// Reads the first column of at most one row.
    pub(super) async fn read_value<T: TryGetable + Send>(
        &self,
        select: &SelectStatement,
    ) -> Result<Option<T>> {
        let row = self.read(|pool| async move { pool.connection.query_one(select).await.map_err(from_db) });
        row.await?.map(|row| row.try_get_by_index(0)).transpose().map_err(from_db)
    }

    /// Attempts a change once.
    async fn try_write<O: Operation>(&self, operation: &O, context: &ChangeContext) -> Result<O::Output> {
        self.database.check().map_err(RepositoryError::unapplied)?;
        let transaction = self.begin().await.map_err(RepositoryError::unapplied)?;
        let outcome = operation.run(transaction, context).await;
        outcome.map_err(|error| match remedy(&error) {
            // The server rejected the change or rolled it back.
            Remedy::Retry | Remedy::Reconnect => error.unapplied(),
            Remedy::TestConnections | Remedy::None => error,
        })
    }

    /// Begins a change, and retries on another connection if the first one was dead. Nothing of the change
    /// was sent by then.
    async fn begin(&self) -> Result<ChangeTransaction> {
        let begin = || {
            let (tables, entropy) = (Arc::clone(&self.tables), Arc::clone(&self.options.entropy));
            ChangeTransaction::begin(&self.writer, tables, entropy)
        };
        for _ in 1..MAX_ATTEMPTS {
            match begin().await {
                Err(error) if remedy(&error) == Remedy::TestConnections => self.writer.health.suspect(),
                outcome => return outcome,
            }
        }
        begin().await
    }
}
