//! Maps errors of SeaORM and the drivers to the kinds that callers act on.

use std::error::Error as _;
use std::fmt;

use sea_orm::{ConnAcquireErr, DbErr, RuntimeErr, sqlx};

use super::postgres::NO_PREPARED_STATEMENTS;
use crate::repository::{ErrorKind, RepositoryError};

/// An error of a driver, with a text for operators.
#[derive(Debug)]
struct Explained {
    problem: &'static str,
    source: DbErr,
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.problem)
    }
}

impl std::error::Error for Explained {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Classifies `error`, which becomes the source.
pub(super) fn from_db(error: DbErr) -> RepositoryError {
    let kind = classify(&error).0;
    match explanation(&error) {
        Some(problem) => RepositoryError::new(kind, Explained { problem, source: error }),
        None => RepositoryError::new(kind, error),
    }
}

/// Returns a text for errors whose own text is meant for developers.
fn explanation(error: &DbErr) -> Option<&'static str> {
    match driver_error(error)? {
        sqlx::Error::Database(error) if is_lost(error.as_ref()) => Some(NO_PREPARED_STATEMENTS),
        // The driver has no other representation of this error.
        sqlx::Error::Configuration(problem)
            if problem.to_string().starts_with("RSA auth backend disabled") =>
        {
            Some(
                "the account of MySQL needs TLS for this login (caching_sha2_password or sha256_password); set ssl-mode=REQUIRED in the \
             URL, or use an account of another authentication plugin",
            )
        }
        _ => None,
    }
}

fn driver_error(error: &DbErr) -> Option<&sqlx::Error> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(source))
        | DbErr::Exec(RuntimeErr::SqlxError(source))
        | DbErr::Query(RuntimeErr::SqlxError(source)) => Some(source.as_ref()),
        _ => None,
    }
}

/// Returns whether a session of PostgreSQL has another prepared statement of this name (`duplicate_prepared_statement`),
/// or none (`invalid_sql_statement_name`).
fn is_lost(error: &dyn sqlx::error::DatabaseError) -> bool {
    error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().is_some()
        && matches!(error.code().as_deref(), Some("42P05" | "26000"))
}

/// Returns the error of the database behind `error`, which [`from_db`] created.
fn cause(error: &RepositoryError) -> Option<&DbErr> {
    let source = error.source()?;
    source.downcast_ref().or_else(|| source.downcast_ref::<Explained>().map(|explained| &explained.source))
}

/// Returns whether the session has lost a prepared statement.
pub(super) fn is_lost_statement(error: &RepositoryError) -> bool {
    let found = cause(error).and_then(driver_error);
    matches!(found, Some(sqlx::Error::Database(error)) if is_lost(error.as_ref()))
}

/// Classifies an error of the driver, which becomes the source.
pub(super) fn from_driver(error: sqlx::Error) -> RepositoryError {
    from_db(DbErr::Conn(RuntimeErr::SqlxError(error.into())))
}

/// Returns the error of a session setting that differs from the value that Keyvouch needs, and can't be set.
pub(super) fn wrong_setting(name: &str, value: &str, wanted: &str) -> sqlx::Error {
    let problem = format!(
        "the database setting {name} has the value {value}, needs {wanted}, and could not be set; change it for this database \
         or user, or connect without the pooler that drops it"
    );
    sqlx::Error::Configuration(problem.into())
}

/// The reactions of the repository to an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// No reaction.
    None,
    /// The database rolled the transaction back because of a conflict. A retry may succeed.
    Retry,
    /// The server rejects writes. Reconnect, which may lead to another server, and retry.
    Reconnect,
    /// The connection was lost. Test the others before they are used, because they may be lost, too. Reads
    /// may be retried.
    TestConnections,
}

/// Returns the reaction to `error`, which [`from_db`] created.
pub(super) fn remedy(error: &RepositoryError) -> Remedy {
    cause(error).map_or(Remedy::None, |error| classify(error).1)
}

/// Returns whether a statement failed because another transaction has locked the rows, or the database on
/// SQLite.
pub(super) fn is_lock_conflict(error: &RepositoryError) -> bool {
    let Some(sqlx::Error::Database(error)) = cause(error).and_then(driver_error) else { return false };
    if let Some(error) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
        // MariaDB's ER_LOCK_WAIT_TIMEOUT, MySQL's ER_LOCK_NOWAIT
        return matches!(error.number(), 1205 | 3572);
    }
    // lock_not_available; SQLITE_BUSY
    matches!(error.code().as_deref(), Some("55P03" | "5"))
}

/// Returns whether no connection of the pool was available in time.
pub(super) fn is_acquire_timeout(error: &RepositoryError) -> bool {
    matches!(cause(error), Some(DbErr::ConnectionAcquire(ConnAcquireErr::Timeout)))
}

/// The kind of an error, and the reaction to it.
type Classification = (ErrorKind, Remedy);

fn classify(error: &DbErr) -> Classification {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(source)) => match classify_driver_error(source) {
            // Failing to connect means that the database is unavailable, whatever the reason.
            (ErrorKind::Internal, remedy) => (ErrorKind::Unavailable, remedy),
            classification => classification,
        },
        DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => (ErrorKind::Unavailable, Remedy::None),
        DbErr::Exec(RuntimeErr::SqlxError(source)) | DbErr::Query(RuntimeErr::SqlxError(source)) => {
            classify_driver_error(source)
        }
        DbErr::Type(_) | DbErr::Json(_) | DbErr::TryIntoErr { .. } => (ErrorKind::Corrupt, Remedy::None),
        _ => (ErrorKind::Internal, Remedy::None),
    }
}

fn classify_driver_error(error: &sqlx::Error) -> Classification {
    match error {
        // An unexpected message can be a notification for another client of a pooler. The connection can't be used
        // any more, and the outcome of the statement is unknown.
        sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed | sqlx::Error::Protocol(_) => {
            (ErrorKind::Unavailable, Remedy::TestConnections)
        }
        sqlx::Error::Tls(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => {
            (ErrorKind::Unavailable, Remedy::None)
        }
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => (ErrorKind::Corrupt, Remedy::None),
        sqlx::Error::Database(error) => {
            if let Some(error) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
                return classify_mysql(error.number());
            }
            let code = error.code().unwrap_or_default();
            if error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().is_some() {
                return classify_postgres(&code);
            }
            (kind_of_sqlite(&code), Remedy::None)
        }
        // A session setting that can't be set.
        sqlx::Error::Configuration(_) => (ErrorKind::Unusable, Remedy::None),
        _ => (ErrorKind::Internal, Remedy::None),
    }
}

/// <https://www.postgresql.org/docs/15/errcodes-appendix.html>
fn classify_postgres(state: &str) -> Classification {
    match state {
        // unique_violation
        "23505" => (ErrorKind::AlreadyExists, Remedy::None),
        // serialization_failure, deadlock_detected
        "40001" | "40P01" => (ErrorKind::Unavailable, Remedy::Retry),
        // read_only_sql_transaction: a standby, or a demoted primary
        "25006" => (ErrorKind::Unavailable, Remedy::Reconnect),
        // lock_not_available, query_canceled
        "55P03" | "57014" => (ErrorKind::Timeout, Remedy::None),
        // insufficient_privilege, also if row-level security would hide rows; invalid_catalog_name: the
        // database does not exist; duplicate_prepared_statement, invalid_sql_statement_name: a pooler lost a
        // prepared statement
        "42501" | "3D000" | "42P05" | "26000" => (ErrorKind::Unavailable, Remedy::None),
        // idle_in_transaction_session_timeout, transaction_timeout: the server closes the connection
        "25P03" | "25P04" => (ErrorKind::Timeout, Remedy::TestConnections),
        // admin_shutdown, crash_shutdown, cannot_connect_now, database_dropped, idle_session_timeout
        "57P01" | "57P02" | "57P03" | "57P04" | "57P05" => (ErrorKind::Unavailable, Remedy::TestConnections),
        // data_corrupted, index_corrupted
        "XX001" | "XX002" => (ErrorKind::Corrupt, Remedy::None),
        _ => match state.get(..2) {
            // connection_exception
            Some("08") => (ErrorKind::Unavailable, Remedy::TestConnections),
            // invalid_authorization_specification, insufficient_resources, system_error
            Some("28" | "53" | "58") => (ErrorKind::Unavailable, Remedy::None),
            _ => (ErrorKind::Internal, Remedy::None),
        },
    }
}

/// <https://mariadb.com/kb/en/mariadb-error-codes/>,
/// <https://dev.mysql.com/doc/mysql-errors/8.0/en/server-error-reference.html>
fn classify_mysql(number: u16) -> Classification {
    match number {
        // ER_DUP_ENTRY
        1062 => (ErrorKind::AlreadyExists, Remedy::None),
        // ER_CHECKREAD (MariaDB's snapshot isolation), ER_LOCK_DEADLOCK
        1020 | 1213 => (ErrorKind::Unavailable, Remedy::Retry),
        // ER_OPTION_PREVENTS_STATEMENT (--read-only), ER_READ_ONLY_MODE
        1290 | 1836 => (ErrorKind::Unavailable, Remedy::Reconnect),
        // ER_LOCK_WAIT_TIMEOUT, ER_QUERY_INTERRUPTED, ER_STATEMENT_TIMEOUT (MariaDB), ER_QUERY_TIMEOUT and
        // ER_LOCK_NOWAIT (MySQL)
        1205 | 1317 | 1969 | 3024 | 3572 => (ErrorKind::Timeout, Remedy::None),
        // ER_SERVER_SHUTDOWN, ER_FORCING_CLOSE, ER_NEW_ABORTING_CONNECTION, ER_CONNECTION_KILLED (MariaDB),
        // ER_CLIENT_INTERACTION_TIMEOUT (MySQL)
        1053 | 1080 | 1184 | 1927 | 4031 => (ErrorKind::Unavailable, Remedy::TestConnections),
        // ER_CON_COUNT_ERROR, ER_DBACCESS_DENIED_ERROR, ER_ACCESS_DENIED_ERROR, ER_BAD_DB_ERROR,
        // ER_TOO_MANY_USER_CONNECTIONS, ER_USER_LIMIT_REACHED; ER_DISK_FULL, ER_GET_ERRNO (of the storage
        // engine), ER_OUTOFMEMORY, ER_RECORD_FILE_FULL
        1040 | 1044 | 1045 | 1049 | 1203 | 1226 | 1021 | 1030 | 1037 | 1114 => {
            (ErrorKind::Unavailable, Remedy::None)
        }
        // ER_NOT_KEYFILE, ER_CRASHED_ON_USAGE
        1034 | 1194 => (ErrorKind::Corrupt, Remedy::None),
        _ => (ErrorKind::Internal, Remedy::None),
    }
}

/// <https://www.sqlite.org/rescode.html>: the low byte of an extended code is its primary code.
fn kind_of_sqlite(code: &str) -> ErrorKind {
    let Ok(code) = code.parse::<u32>() else {
        return ErrorKind::Internal;
    };
    match (code, code & 0xff) {
        // CONSTRAINT_PRIMARYKEY, CONSTRAINT_UNIQUE
        (1_555 | 2_067, _) => ErrorKind::AlreadyExists,
        // BUSY, LOCKED: another process held the lock for longer than the busy timeout.
        (_, 5 | 6) => ErrorKind::Timeout,
        // READONLY, IOERR, FULL, CANTOPEN
        (_, 8 | 10 | 13 | 14) => ErrorKind::Unavailable,
        // CORRUPT, NOTADB
        (_, 11 | 26) => ErrorKind::Corrupt,
        _ => ErrorKind::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlite_codes_become_kinds() {
        for (code, kind) in [
            ("1555", ErrorKind::AlreadyExists),
            ("2067", ErrorKind::AlreadyExists),
            ("5", ErrorKind::Timeout),
            ("517", ErrorKind::Timeout),
            ("8", ErrorKind::Unavailable),
            ("778", ErrorKind::Unavailable),
            ("13", ErrorKind::Unavailable),
            ("11", ErrorKind::Corrupt),
            ("26", ErrorKind::Corrupt),
            ("787", ErrorKind::Internal),
            ("1", ErrorKind::Internal),
            ("x", ErrorKind::Internal),
        ] {
            assert_eq!(kind_of_sqlite(code), kind, "{code}");
        }
    }

    #[test]
    fn sqlstates_of_postgres_become_kinds() {
        for (state, kind, remedy) in [
            ("23505", ErrorKind::AlreadyExists, Remedy::None),
            ("23503", ErrorKind::Internal, Remedy::None),
            ("40001", ErrorKind::Unavailable, Remedy::Retry),
            ("40P01", ErrorKind::Unavailable, Remedy::Retry),
            ("25006", ErrorKind::Unavailable, Remedy::Reconnect),
            ("55P03", ErrorKind::Timeout, Remedy::None),
            ("57014", ErrorKind::Timeout, Remedy::None),
            ("25P03", ErrorKind::Timeout, Remedy::TestConnections),
            ("57P01", ErrorKind::Unavailable, Remedy::TestConnections),
            ("57P03", ErrorKind::Unavailable, Remedy::TestConnections),
            ("08006", ErrorKind::Unavailable, Remedy::TestConnections),
            ("53300", ErrorKind::Unavailable, Remedy::None),
            ("28P01", ErrorKind::Unavailable, Remedy::None),
            ("3D000", ErrorKind::Unavailable, Remedy::None),
            ("58030", ErrorKind::Unavailable, Remedy::None),
            ("XX001", ErrorKind::Corrupt, Remedy::None),
            ("42P01", ErrorKind::Internal, Remedy::None),
            ("42P05", ErrorKind::Unavailable, Remedy::None),
            ("26000", ErrorKind::Unavailable, Remedy::None),
            ("", ErrorKind::Internal, Remedy::None),
        ] {
            assert_eq!(classify_postgres(state), (kind, remedy), "{state}");
        }
    }

    #[test]
    fn numbers_of_mysql_become_kinds() {
        for (number, kind, remedy) in [
            (1062, ErrorKind::AlreadyExists, Remedy::None),
            (1213, ErrorKind::Unavailable, Remedy::Retry),
            (1020, ErrorKind::Unavailable, Remedy::Retry),
            (1290, ErrorKind::Unavailable, Remedy::Reconnect),
            (1836, ErrorKind::Unavailable, Remedy::Reconnect),
            (1205, ErrorKind::Timeout, Remedy::None),
            (1969, ErrorKind::Timeout, Remedy::None),
            (3024, ErrorKind::Timeout, Remedy::None),
            (3572, ErrorKind::Timeout, Remedy::None),
            (1927, ErrorKind::Unavailable, Remedy::TestConnections),
            (1053, ErrorKind::Unavailable, Remedy::TestConnections),
            (1040, ErrorKind::Unavailable, Remedy::None),
            (1045, ErrorKind::Unavailable, Remedy::None),
            (1114, ErrorKind::Unavailable, Remedy::None),
            (1194, ErrorKind::Corrupt, Remedy::None),
            (1064, ErrorKind::Internal, Remedy::None),
        ] {
            assert_eq!(classify_mysql(number), (kind, remedy), "{number}");
        }
    }
}
