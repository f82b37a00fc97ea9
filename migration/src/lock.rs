//! A lock, so that only one process migrates at a time. SeaORM's migrator takes no lock.

use sea_orm_migration::sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, SqliteTransactionMode,
    Statement, TransactionOptions, TransactionTrait as _,
};

use crate::migrator::quoted;
use crate::{MigrateError, Names};

/// Maximum time in seconds that a process waits for another one that migrates. A migration can take long.
const PATIENCE_SECONDS: u32 = 3_600;

/// MySQL's locks are global to the server, with names of at most 64 characters. The name is therefore derived
/// from the database and the table.
const MYSQL_LOCK: &str = "CONCAT('keyvouch_', LEFT(SHA2(CONCAT(DATABASE(), '.', ?), 256), 32))";
/// PostgreSQL's advisory locks are local to the database, with numbers as names. The number is therefore
/// derived from the schema and the table.
const POSTGRES_LOCK: &str = "SELECT pg_advisory_xact_lock(\
     hashtextextended('keyvouch ' || coalesce(current_schema(), '') || '.' || $1, 0))";

/// The connection on which [`lock`] lets the caller work. It is a transaction if the database supports
/// transactional schema changes.
pub(crate) enum Session<'c> {
    Transaction(DatabaseTransaction),
    Connection(&'c DatabaseConnection),
}

/// Settings of a migration's transaction on PostgreSQL, whatever the defaults of the role are. They end with the
/// transaction, because a pooler can give the session to another client. With READ COMMITTED, the work under the
/// lock sees what an earlier holder of the lock committed.
const POSTGRES_SETTINGS: &str = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; \
     SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0; \
     SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL row_security = off";

/// Takes the lock of these tables. `connection` must have exactly one connection to the database, since
/// MySQL's lock belongs to a connection. On PostgreSQL, the names of tables in the returned transaction mean the
/// tables of `schema`. `None` means the schemas of the session's `search_path`.
///
/// # Errors
/// [`MigrateError::Locked`] on MySQL if another process holds the lock for longer than an hour. Otherwise the
/// database's error.
pub(crate) async fn lock<'c>(
    connection: &'c DatabaseConnection,
    names: &Names,
    schema: Option<&str>,
) -> Result<Session<'c>, MigrateError> {
    match connection.get_database_backend() {
        DbBackend::MySql => {
            let sql = format!("SELECT CAST(GET_LOCK({MYSQL_LOCK}, ?) AS SIGNED)");
            let values = [names.api_key().into(), PATIENCE_SECONDS.into()];
            let statement = Statement::from_sql_and_values(DbBackend::MySql, sql, values);
            let row = connection.query_one_raw(statement).await?;
            let taken = row.map(|row| row.try_get_by_index::<Option<i64>>(0)).transpose()?.flatten();
            if taken != Some(1) {
                return Err(MigrateError::Locked);
            }
            Ok(Session::Connection(connection))
        }
        DbBackend::Postgres => {
            let transaction = connection.begin().await?;
            let mut settings = POSTGRES_SETTINGS.to_owned();
            if let Some(schema) = schema {
                // By default, temporary tables of the session hide others.
                settings += &format!("; SET LOCAL search_path = {}, pg_temp", quoted(schema));
            }
            transaction.execute_unprepared(&settings).await?;
            let statement =
                Statement::from_sql_and_values(DbBackend::Postgres, POSTGRES_LOCK, [names.api_key().into()]);
            transaction.query_one_raw(statement).await?;
            Ok(Session::Transaction(transaction))
        }
        _ => {
            // A deferred transaction could fail when it begins to write.
            let options = TransactionOptions {
                sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
                ..TransactionOptions::default()
            };
            Ok(Session::Transaction(connection.begin_with_options(options).await?))
        }
    }
}

impl Session<'_> {
    /// Commits the work and releases the lock.
    pub(crate) async fn finish(self, names: &Names) -> Result<(), DbErr> {
        match self {
            Self::Transaction(transaction) => transaction.commit().await,
            Self::Connection(connection) => release(connection, names).await,
        }
    }

    /// Rolls the work back as far as the database supports it, and releases the lock.
    pub(crate) async fn abandon(self, names: &Names) -> Result<(), DbErr> {
        match self {
            Self::Transaction(transaction) => transaction.rollback().await,
            Self::Connection(connection) => release(connection, names).await,
        }
    }
}

async fn release(connection: &DatabaseConnection, names: &Names) -> Result<(), DbErr> {
    let sql = format!("SELECT RELEASE_LOCK({MYSQL_LOCK})");
    let statement = Statement::from_sql_and_values(DbBackend::MySql, sql, [names.api_key().into()]);
    connection.query_one_raw(statement).await.map(drop)
}
