//! Where notifications of PostgreSQL are received, and the connections that a replica needs.

use sea_orm::sqlx::postgres::PgConnectOptions;
use sea_orm::{ConnectionTrait as _, Statement};

use super::database::Database;
use super::error::from_db;
use super::{SqlRepository, postgres};
use crate::repository::{ErrorKind, RepositoryError, Result};
use crate::telemetry::error_chain;

/// The connection that receives notifications of changes.
#[derive(Clone, Debug, Default)]
pub(super) enum Notifications {
    /// A connection to the database of the repository.
    #[default]
    OfStore,
    /// A connection by another URL to the same database.
    Direct(Box<Database>),
    /// No connection. Followers depend on polls.
    Off,
}

impl SqlRepository {
    /// Receives notifications of changes by a connection to `url`, which leads to the same PostgreSQL database
    /// without a pooler in transaction mode. The server of `url` may be unreachable at startup. Changes of other
    /// replicas are then applied by polls until it can be reached.
    ///
    /// # Errors
    /// [`ErrorKind::Unusable`] if the URL can't be used, or if a notification that is sent by this repository does not
    /// arrive there. Errors contain no part of the URL.
    pub async fn with_listen_url(self, url: &str) -> Result<Self> {
        let refused = |problem: &'static str| Err(RepositoryError::new(ErrorKind::Unusable, problem));
        // Other databases send no notifications, and parsing the URL of a file would create it.
        if !url.starts_with("postgres") {
            return refused("must be a PostgreSQL URL");
        }
        let database = Database::parse(url)?;
        let Database::Postgres(server) = &database else { return refused("must be a PostgreSQL URL") };
        match Box::pin(self.receives(server)).await {
            Ok(true) => {}
            Ok(false) => {
                return refused(
                    "a notification that was sent through store.url did not arrive; both URLs must lead to the same database on \
                     the primary server",
                );
            }
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) => {
                tracing::warn!(
                    error = %error_chain(&error),
                    "can't check the delivery of notifications (store.sql.listen_url); changes of other replicas may be applied by polls only"
                );
            }
            Err(error) => return Err(error),
        }
        Ok(Self { notifications: Notifications::Direct(Box::new(database)), ..self })
    }

    async fn receives(&self, server: &PgConnectOptions) -> Result<bool> {
        postgres::check_listening(server, &self.options).await?;
        postgres::delivers(server, &self.options, async |channel| {
            let notify = Statement::from_sql_and_values(
                self.tables.backend,
                "SELECT pg_notify($1, '')",
                [channel.into()],
            );
            self.writer.connection.execute_raw(notify).await.map_err(from_db).map(drop)
        })
        .await
    }

    /// Receives no notifications. Changes of other replicas are applied by polls only.
    #[must_use]
    pub fn without_notifications(self) -> Self {
        Self { notifications: Notifications::Off, ..self }
    }

    /// Returns the PostgreSQL server of the connection for notifications. `None` on other databases, and if
    /// notifications are disabled.
    pub(super) fn listening_server(&self) -> Option<&PgConnectOptions> {
        let database = match &self.notifications {
            Notifications::OfStore => &self.database,
            Notifications::Direct(database) => database.as_ref(),
            Notifications::Off => return None,
        };
        match database {
            Database::Postgres(server) => Some(server),
            Database::Sqlite(_) | Database::MySql(_) => None,
        }
    }

    /// Checks that the server of PostgreSQL, or the pooler in front of it, provides at once the smallest number of
    /// connections with which a replica works: one for reads, one for changes, and one for notifications if they
    /// have the same URL. Other databases are not checked.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] names the settings of the numbers of connections.
    pub async fn check_connections(&self) -> Result<()> {
        let Database::Postgres(server) = &self.database else { return Ok(()) };
        match self.notifications {
            Notifications::OfStore => postgres::check_count::<3>(server, &self.options).await,
            Notifications::Direct(_) | Notifications::Off => {
                postgres::check_count::<2>(server, &self.options).await
            }
        }
    }
}
