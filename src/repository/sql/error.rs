//! From SeaORM's errors to the kinds that callers act on.

use sea_orm::{DbErr, RuntimeErr, SqlErr, sqlx};

use crate::repository::{ErrorKind, RepositoryError};

/// Classifies `error`, which becomes the source.
pub(super) fn from_db(error: DbErr) -> RepositoryError {
    RepositoryError::new(kind_of(&error), error)
}

fn kind_of(error: &DbErr) -> ErrorKind {
    if let Some(SqlErr::UniqueConstraintViolation(_)) = error.sql_err() {
        return ErrorKind::AlreadyExists;
    }
    match error {
        DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => ErrorKind::Unavailable,
        DbErr::Exec(RuntimeErr::SqlxError(source)) | DbErr::Query(RuntimeErr::SqlxError(source)) => {
            kind_of_driver(source)
        }
        DbErr::Type(_) | DbErr::Json(_) | DbErr::TryIntoErr { .. } => ErrorKind::Corrupt,
        _ => ErrorKind::Internal,
    }
}

fn kind_of_driver(error: &sqlx::Error) -> ErrorKind {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => ErrorKind::Unavailable,
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => ErrorKind::Corrupt,
        sqlx::Error::Database(error) => {
            error.code().map_or(ErrorKind::Internal, |code| kind_of_sqlite(&code))
        }
        _ => ErrorKind::Internal,
    }
}

/// <https://www.sqlite.org/rescode.html>: the low byte of an extended code is its primary code.
fn kind_of_sqlite(code: &str) -> ErrorKind {
    let Ok(code) = code.parse::<u32>() else {
        return ErrorKind::Internal;
    };
    match code & 0xff {
        // BUSY, LOCKED: another process held the lock for longer than the busy timeout.
        5 | 6 => ErrorKind::Timeout,
        // READONLY, IOERR, FULL, CANTOPEN
        8 | 10 | 13 | 14 => ErrorKind::Unavailable,
        // CORRUPT, NOTADB
        11 | 26 => ErrorKind::Corrupt,
        _ => ErrorKind::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlite_codes_that_matter() {
        assert_eq!(kind_of_sqlite("5"), ErrorKind::Timeout);
        assert_eq!(kind_of_sqlite("517"), ErrorKind::Timeout, "SQLITE_BUSY_SNAPSHOT");
        assert_eq!(kind_of_sqlite("13"), ErrorKind::Unavailable);
        assert_eq!(kind_of_sqlite("11"), ErrorKind::Corrupt);
        assert_eq!(kind_of_sqlite("1"), ErrorKind::Internal);
        assert_eq!(kind_of_sqlite("HY000"), ErrorKind::Internal);
    }

    #[test]
    fn a_store_that_can_not_be_reached_is_unavailable() {
        let refused = sqlx::Error::Io(std::io::ErrorKind::ConnectionRefused.into());
        assert_eq!(kind_of(&DbErr::Query(RuntimeErr::SqlxError(refused.into()))), ErrorKind::Unavailable);
        let timed_out = DbErr::ConnectionAcquire(sea_orm::ConnAcquireErr::Timeout);
        assert_eq!(kind_of(&timed_out), ErrorKind::Unavailable);
    }
}
