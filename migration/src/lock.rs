//! One process migrates at a time: SeaORM's migrator takes no lock.

use sea_orm_migration::sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, SqliteTransactionMode,
    Statement, TransactionOptions, TransactionTrait as _,
};

use crate::{MigrateError, Names};

/// How long a process waits for another one that migrates, in seconds: that can take its time.
const PATIENCE_SECONDS: u32 = 3_600;

/// MySQL's locks are the server's, with names of at most 64 characters: the database is part of this one.
const MYSQL_LOCK: &str = "CONCAT('keyvouch_', LEFT(SHA2(CONCAT(DATABASE(), '.', ?), 256), 32))";
/// PostgreSQL's advisory locks are the database's, with a number each: the schema is part of this one.
const POSTGRES_LOCK: &str = "SELECT pg_advisory_xact_lock(\
     hashtextextended('keyvouch ' || coalesce(current_schema(), '') || '.' || $1, 0))";

/// What [`lock`] hands to the work: a transaction where a schema can be changed in one.
pub(crate) enum Session<'c> {
    Transaction(DatabaseTransaction),
    Connection(&'c DatabaseConnection),
}

/// Takes the lock of these tables. `connection` has exactly one connection to the database, since MySQL's lock belongs
/// to a connection.
pub(crate) async fn lock<'c>(
    connection: &'c DatabaseConnection,
    names: &Names,
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
            transaction
                .execute_unprepared("SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0")
                .await?;
            let statement =
                Statement::from_sql_and_values(DbBackend::Postgres, POSTGRES_LOCK, [names.api_key().into()]);
            transaction.query_one_raw(statement).await?;
            Ok(Session::Transaction(transaction))
        }
        _ => {
            // A deferred transaction could fail when it turns from reading to writing.
            let options = TransactionOptions {
                sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
                ..TransactionOptions::default()
            };
            Ok(Session::Transaction(connection.begin_with_options(options).await?))
        }
    }
}

impl Session<'_> {
    /// Makes the work last and gives the lock back.
    pub(crate) async fn finish(self, names: &Names) -> Result<(), DbErr> {
        match self {
            Self::Transaction(transaction) => transaction.commit().await,
            Self::Connection(connection) => release(connection, names).await,
        }
    }

    /// Undoes the work as far as the database can, and gives the lock back.
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
