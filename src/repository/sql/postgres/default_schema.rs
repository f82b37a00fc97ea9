//! The schema of the tables if the settings don't name one.

use keyvouch_migration::Names;
use sea_orm::sqlx::postgres::PgConnection;
use sea_orm::sqlx::{self, Executor as _, Row as _};

use crate::repository::sql::error::from_driver;
use crate::repository::{ErrorKind, RepositoryError, Result};

/// Sets the default `search_path` of the role until the end of the transaction. Behind a pooler in transaction mode,
/// the session may have one that another client left.
const BEGIN: &str = "BEGIN; SELECT set_config('search_path', reset_val, true) FROM pg_catalog.pg_settings \
     WHERE name = 'search_path'";
/// Temporary tables belong to the session, so they are not considered.
const SCHEMA: &str = "SELECT coalesce((SELECT nspname FROM pg_catalog.pg_class \
     JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace \
     WHERE pg_class.oid = coalesce(to_regclass($1), to_regclass($2)) AND relpersistence <> 't'), current_schema())::text";

/// Returns the schema in which the default `search_path` of the role finds the tables. If they don't exist, returns
/// the schema in which a migration would create them.
///
/// # Errors
/// [`ErrorKind::Unusable`] if no schema of the `search_path` exists, and the errors of connecting.
pub(super) async fn default_schema(connection: &mut PgConnection, names: &Names) -> Result<String> {
    connection.execute(BEGIN).await.map_err(from_driver)?;
    let select =
        sqlx::query::<sqlx::Postgres>(SCHEMA).persistent(false).bind(names.api_key()).bind(names.history());
    let row = connection.fetch_one(select).await.map_err(from_driver)?;
    let schema: Option<String> = row.try_get(0).map_err(from_driver)?;
    connection.execute("ROLLBACK").await.map_err(from_driver)?;
    schema.ok_or_else(|| {
        RepositoryError::new(
            ErrorKind::Unusable,
            "the database user has no default schema, because its search_path names none that exists; set store.sql.schema",
        )
    })
}
