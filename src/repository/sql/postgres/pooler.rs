//! Checks at startup of the pooler between Keyvouch and PostgreSQL. They leave no state in sessions, which may
//! belong to other clients.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use sea_orm::sqlx::postgres::{PgConnectOptions, PgConnection};
use sea_orm::sqlx::{self, AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, Row as _};

use super::default_schema::default_schema;
use super::session::OF_SINGLE_STATEMENTS;
use super::{named, try_settings};
use crate::repository::sql::error::{from_driver, is_lost_statement};
use crate::repository::sql::options::{Pooling, SqlOptions};
use crate::repository::{ErrorKind, RepositoryError, Result};
use crate::telemetry::error_chain;

/// Number of attempts to observe that two connections share sessions. A pooler that picks sessions at random shows
/// it in two of three attempts.
const ROUNDS: usize = 5;

/// The text for a pooler that loses prepared statements.
pub(in crate::repository::sql) const NO_PREPARED_STATEMENTS: &str = "the pooler loses prepared statements; use PgBouncer 1.21 or newer with \
     max_prepared_statements > 0, use session mode, or connect directly";
const MUST_BE_DECLARED: &str = "store.url leads through a pooler in transaction mode; connect directly, use session mode, or set \
     store.sql.pooling = \"transaction\", which needs PgBouncer 1.21 or newer with max_prepared_statements > 0";
const STATEMENT_MODE: &str =
    "the pooler is in statement mode, which allows no transactions; use session or transaction mode";

/// Checks that connections to `server` behave as `options.pooling` declares. Returns the schema of the tables, or of
/// the tables that a migration would create. `None` if the options name a schema.
///
/// # Errors
/// - [`ErrorKind::Unusable`] if sessions are shared and that is not declared, if the pooler loses prepared statements,
///   if the role lacks the defaults that shared sessions need, or if a setting can't be set.
/// - [`ErrorKind::Unavailable`] if the server can't be reached, or does not provide two connections at once.
pub(in crate::repository::sql) async fn inspect(
    server: &PgConnectOptions,
    options: &SqlOptions,
) -> Result<Option<String>> {
    with_connections::<2, _>(server, options, async |[first, second]| {
        let is_shared = shares_sessions(first, second).await?;
        if is_shared && options.pooling == Pooling::Session {
            return Err(refused(MUST_BE_DECLARED));
        }
        check_statements(first, second).await?;
        if options.pooling == Pooling::Transaction {
            check_role(first, server.get_username()).await?;
        }
        let schema = match options.schema {
            Some(_) => None,
            None => Some(default_schema(first, &options.names).await?),
        };
        // Last, because it leaves settings in a session that is not shared.
        try_settings(first, options).await?;
        Ok(schema)
    })
    .await
}

/// Checks that the sessions of `server` are not shared, which notifications need.
///
/// # Errors
/// [`ErrorKind::Unusable`] if they are, and the errors of connecting.
pub(in crate::repository::sql) async fn check_listening(
    server: &PgConnectOptions,
    options: &SqlOptions,
) -> Result<()> {
    with_connections::<2, _>(server, options, async |[first, second]| {
        if shares_sessions(first, second).await? {
            return Err(refused(
                "store.sql.listen_url: leads through a pooler in transaction mode, which delivers no notifications; set it to a \
                 direct URL, or to \"off\"",
            ));
        }
        Ok(())
    })
    .await
}

/// Checks that `server` provides `N` connections at once.
///
/// # Errors
/// [`ErrorKind::Unavailable`] if it does not, and the errors of connecting.
pub(in crate::repository::sql) async fn check_count<const N: usize>(
    server: &PgConnectOptions,
    options: &SqlOptions,
) -> Result<()> {
    with_connections::<N, _>(server, options, async |_| Ok(())).await
}

/// Runs `check` with `N` connections that exist at the same time, within the timeout of a first connection.
async fn with_connections<const N: usize, T>(
    server: &PgConnectOptions,
    options: &SqlOptions,
    check: impl AsyncFnOnce(&mut [PgConnection; N]) -> Result<T>,
) -> Result<T> {
    let made = AtomicUsize::new(0);
    let checked = async {
        let mut connections = Vec::with_capacity(N);
        for _ in 0..N {
            match connected(server).await {
                Ok(connection) => connections.push(connection),
                Err(error) if error.kind() == ErrorKind::Unavailable && !connections.is_empty() => {
                    return Err(too_few(connections.len(), N, options, &error_chain(&error).to_string()));
                }
                Err(error) => return Err(error),
            }
            made.fetch_add(1, Ordering::Relaxed);
        }
        let mut connections: [PgConnection; N] =
            connections.try_into().map_err(|_| RepositoryError::from(ErrorKind::Internal))?;
        let outcome = check(&mut connections).await;
        for connection in connections {
            // The outcome does not depend on how a connection ends.
            let _ = connection.close().await;
        }
        outcome
    };
    match tokio::time::timeout(options.pool.connect_timeout, checked).await {
        Ok(outcome) => outcome,
        Err(elapsed) if made.load(Ordering::Relaxed) == 0 => {
            Err(RepositoryError::new(ErrorKind::Unavailable, elapsed))
        }
        Err(elapsed) => Err(too_few(made.load(Ordering::Relaxed), N, options, &elapsed.to_string())),
    }
}

async fn connected(server: &PgConnectOptions) -> Result<PgConnection> {
    let mut connection = named(server).connect().await.map_err(from_driver)?;
    // A pooler provides a session only when it is used.
    backend(&mut connection).await.map_err(from_driver)?;
    Ok(connection)
}

fn too_few(made: usize, needed: usize, options: &SqlOptions, reason: &str) -> RepositoryError {
    RepositoryError::new(
        ErrorKind::Unavailable,
        format!(
            "the server or its pooler provided {made} of the {needed} connections that are needed at once ({reason}); {}",
            options.counts()
        ),
    )
}

/// Returns whether consecutive statements of one connection run in different sessions while another connection
/// has a transaction.
async fn shares_sessions(first: &mut PgConnection, second: &mut PgConnection) -> Result<bool> {
    let mut sessions = BTreeSet::new();
    for _ in 0..ROUNDS {
        sessions.insert(backend(first).await.map_err(from_driver)?);
        begin(second).await?;
        sessions.insert(backend(first).await.map_err(from_driver)?);
        second.execute("ROLLBACK").await.map_err(from_driver)?;
        sessions.insert(backend(first).await.map_err(from_driver)?);
    }
    Ok(sessions.len() > 1)
}

/// Returns the process id of the session.
async fn backend(connection: &mut PgConnection) -> sqlx::Result<i32> {
    connection.fetch_one("SELECT pg_catalog.pg_backend_pid()").await?.try_get(0)
}

async fn begin(connection: &mut PgConnection) -> Result<()> {
    match connection.execute("BEGIN").await {
        // protocol_violation is PgBouncer's answer in statement mode.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("08P01") => {
            Err(refused(STATEMENT_MODE))
        }
        begun => begun.map(drop).map_err(from_driver),
    }
}

/// Checks that a prepared statement of `first` is still known while `second` has a transaction.
async fn check_statements(first: &mut PgConnection, second: &mut PgConnection) -> Result<()> {
    let outcome = async {
        for round in 0..ROUNDS {
            let prepared = sqlx::query::<sqlx::Postgres>("SELECT $1::pg_catalog.int4").bind(0_i32);
            first.execute(prepared).await.map_err(from_driver)?;
            if round + 1 < ROUNDS {
                second
                    .execute(if round % 2 == 0 { "BEGIN" } else { "ROLLBACK" })
                    .await
                    .map_err(from_driver)?;
            }
        }
        Ok(())
    };
    match outcome.await {
        Err(error) if is_lost_statement(&error) => Err(refused(NO_PREPARED_STATEMENTS)),
        outcome => outcome,
    }
}

/// Checks the defaults of the role for statements outside of transactions. Keyvouch can't set them in a session that
/// others use.
async fn check_role(connection: &mut PgConnection, role: &str) -> Result<()> {
    let names = OF_SINGLE_STATEMENTS.map(|(name, _)| format!("'{name}'")).join(", ");
    let read = format!(
        "SELECT name, reset_val FROM pg_catalog.pg_settings WHERE name IN ({names}, 'statement_timeout')"
    );
    let rows = connection.fetch_all(AssertSqlSafe(read)).await.map_err(from_driver)?;
    let mut alterations = Vec::new();
    let role = format!("\"{}\"", role.replace('"', "\"\""));
    for row in rows {
        let name: String = row.try_get(0).map_err(from_driver)?;
        let value: Option<String> = row.try_get(1).map_err(from_driver)?;
        let value = value.unwrap_or_default();
        if name == "statement_timeout" && value == "0" {
            tracing::warn!(
                "the database does not limit the time of lookups; run ALTER ROLE {role} SET statement_timeout = '5s', with the value of store.timeout"
            );
        }
        let wanted = OF_SINGLE_STATEMENTS.iter().find(|(wanted, _)| *wanted == name);
        if let Some((_, wanted)) = wanted
            && *wanted != value
        {
            alterations.push(format!("ALTER ROLE {role} SET {name} = '{wanted}';"));
        }
    }
    if alterations.is_empty() {
        return Ok(());
    }
    Err(RepositoryError::new(
        ErrorKind::Unusable,
        format!(
            "with store.sql.pooling = \"transaction\", the role needs other defaults; run {} then let the pooler reconnect (RECONNECT)",
            alterations.join(" ")
        ),
    ))
}

fn refused(problem: &'static str) -> RepositoryError {
    RepositoryError::new(ErrorKind::Unusable, problem)
}
