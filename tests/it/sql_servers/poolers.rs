//! `PgBouncer` in session mode and in transaction mode.

use std::sync::OnceLock;

use futures_util::StreamExt as _;
use keyvouch::domain::{ApiKey, RevokeReason};
use keyvouch::repository::{
    ChangeFeed as _, ErrorKind, KeyRepository as _, Pooling, RepositoryError, SqlOptions, SqlRepository,
};
use sea_orm::{
    ConnectionTrait as _, Database, DatabaseConnection, DbBackend, Statement, TransactionTrait as _,
};

use super::context;
use crate::databases::{Kind, PgBouncer, Watched, few_connections, patient};
use crate::process::program::Home;
use crate::sql::key;
use crate::support::until;

const TRANSACTION_MODE: &str = "pool_mode = transaction";
/// Clients of these tests send it, other than Keyvouch.
const ACCEPTED: &str = "ignore_startup_parameters = extra_float_digits";

/// Defaults of the role or the database, without which a repository does not open in transaction mode.
const DEFAULTS: [&str; 3] = ["row_security = off", "enable_seqscan = off", "statement_timeout = '5s'"];

/// A new database behind a pooler in transaction mode.
pub(crate) struct Behind {
    direct: String,
    pooled: String,
}

/// Returns `PgBouncer` 1.24 in transaction mode in front of the shared server. The URL that it returns has some
/// database of the server.
pub(crate) fn shared_pooler() -> &'static str {
    static POOLER: OnceLock<(Watched, String)> = OnceLock::new();
    let server = Kind::Postgres.url();
    let settings = [TRANSACTION_MODE, ACCEPTED, "default_pool_size = 3", "max_client_conn = 2000"];
    let (_, url) = POOLER.get_or_init(|| PgBouncer::Current.start(&format!("{server}/postgres"), &settings));
    url
}

impl Behind {
    pub(crate) async fn new(pooler: &str) -> Self {
        let direct = Kind::Postgres.database().await;
        let name = name_of(&direct);
        let database = Database::connect(&direct).await.unwrap();
        for default in DEFAULTS {
            database.execute_unprepared(&format!("ALTER DATABASE {name} SET {default}")).await.unwrap();
        }
        database.close().await.unwrap();
        let (server, _) = pooler.rsplit_once('/').unwrap();
        Self { pooled: format!("{server}/{name}"), direct }
    }

    /// Opens a repository that receives notifications by the direct URL, and creates its tables.
    pub(crate) async fn repository(&self, options: SqlOptions) -> SqlRepository {
        let repository = open(&self.pooled, Pooling::Transaction, options).await.unwrap();
        let repository = repository.with_listen_url(&self.direct).await.unwrap();
        repository.migrate().await.unwrap();
        repository
    }

    async fn stranger(&self) -> DatabaseConnection {
        Database::connect(&self.direct).await.unwrap()
    }
}

fn name_of(url: &str) -> &str {
    url.rsplit_once('/').unwrap().1
}

fn in_schema(schema: &str) -> SqlOptions {
    SqlOptions { schema: Some(schema.to_owned()), ..few_connections() }
}

async fn open(url: &str, pooling: Pooling, options: SqlOptions) -> Result<SqlRepository, RepositoryError> {
    SqlRepository::open(url, SqlOptions { pooling, ..options }).await
}

fn assert_refused(opened: Result<SqlRepository, RepositoryError>, texts: &[&str]) {
    let error = opened.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unusable, "{error:?}");
    for text in texts {
        assert!(format!("{error:?}").contains(text), "{text}: {error:?}");
    }
}

async fn number(database: &impl sea_orm::ConnectionTrait, sql: &str) -> i64 {
    let row = database.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await.unwrap();
    row.unwrap().try_get_by_index(0).unwrap()
}

/// The settings that a client without any finds in the sessions of a pooler.
async fn settings_of_a_stranger(url: &str) -> Vec<String> {
    let database = Database::connect(url).await.unwrap();
    let sql = "SELECT name || '=' || setting FROM pg_settings WHERE name IN ('search_path', 'row_security', 'enable_seqscan', \
               'lock_timeout', 'statement_timeout', 'idle_in_transaction_session_timeout', 'default_transaction_isolation') \
               ORDER BY name";
    let rows = database.query_all_raw(Statement::from_string(DbBackend::Postgres, sql)).await.unwrap();
    rows.iter().map(|row| row.try_get_by_index::<String>(0).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undeclared_transaction_mode_is_rejected() {
    for release in [PgBouncer::Debian, PgBouncer::Current] {
        let direct = Kind::Postgres.database().await;
        let before = settings_of_a_stranger(&direct).await;
        let (_pooler, url) = release.start(&direct, &[TRANSACTION_MODE, ACCEPTED]);
        let texts = ["transaction mode", "store.sql.pooling", "PgBouncer 1.21"];
        assert_refused(open(&url, Pooling::Session, patient()).await, &texts);
        // 1.18 supports no prepared statements, so this client needs a session of its own there.
        if matches!(release, PgBouncer::Current) {
            assert_eq!(settings_of_a_stranger(&url).await, before, "the check left settings in sessions");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_loses_prepared_statements_is_rejected() {
    let settings = ["max_prepared_statements = 0"];
    for (release, settings) in [(PgBouncer::Debian, &[][..]), (PgBouncer::Current, &settings)] {
        let direct = Kind::Postgres.database().await;
        let (_pooler, url) = release.start(&direct, &[settings, &[TRANSACTION_MODE]].concat());
        let texts = ["loses prepared statements", "PgBouncer 1.21", "max_prepared_statements"];
        assert_refused(open(&url, Pooling::Transaction, patient()).await, &texts);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_in_statement_mode_is_rejected() {
    let direct = Kind::Postgres.database().await;
    let (_pooler, url) = PgBouncer::Current.start(&direct, &["pool_mode = statement"]);
    assert_refused(open(&url, Pooling::Transaction, patient()).await, &["statement mode"]);
}

/// Other clients are busy meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_their_own_are_recognised() {
    for release in [None, Some(PgBouncer::Debian), Some(PgBouncer::Current)] {
        let direct = Kind::Postgres.database().await;
        let started = release.map(|release| release.start(&direct, &[]));
        let url = started.as_ref().map_or(&direct, |(_, url)| url);
        let busy = open(url, Pooling::Session, few_connections()).await.unwrap();
        busy.migrate().await.unwrap();
        let working = tokio::spawn({
            let busy = busy.clone();
            async move {
                for number in 0.. {
                    busy.create(key(&number.to_string()), &context()).await.unwrap();
                }
            }
        });
        for _ in 0..10 {
            open(url, Pooling::Session, few_connections()).await.unwrap().close().await.unwrap();
        }
        working.abort();
        assert!(working.await.unwrap_err().is_cancelled(), "the busy client failed");
    }
}

/// Sessions are shared, so the defaults apply to lookups.
#[tokio::test(flavor = "multi_thread")]
async fn defaults_of_the_role_are_required_in_transaction_mode() {
    let direct = Kind::Postgres.database().await;
    let (_pooler, url) = PgBouncer::Current.start(&direct, &[TRANSACTION_MODE]);
    let alter = r#"ALTER ROLE \"postgres\" SET"#;
    let texts =
        [&format!("{alter} row_security = 'off'")[..], &format!("{alter} enable_seqscan = 'off'")[..]];
    assert_refused(open(&url, Pooling::Transaction, patient()).await, &texts);
}

/// A statement of one installation must not reach the tables of the other one, and other clients of the pooler keep
/// their settings.
#[tokio::test(flavor = "multi_thread")]
async fn installations_in_schemas_of_one_database_are_apart() {
    let behind = Behind::new(shared_pooler()).await;
    let before = settings_of_a_stranger(&behind.direct).await;
    let a = behind.repository(in_schema("team_a")).await;
    let b = behind.repository(in_schema("team_b")).await;
    let fill = |repository: SqlRepository, name: &'static str| {
        tokio::spawn(async move {
            let mut keys = Vec::new();
            for number in 0..40 {
                let key = key(&format!("{name} {number}"));
                keys.push(repository.create(key, &context()).await.unwrap());
            }
            keys
        })
    };
    let (of_a, of_b) = (fill(a.clone(), "a"), fill(b.clone(), "b"));
    let (of_a, of_b) = (of_a.await.unwrap(), of_b.await.unwrap());
    for (own, other, keys) in [(&a, &b, &of_a), (&b, &a, &of_b)] {
        for key in keys {
            assert_eq!(own.get_by_hash(&key.hash).await.unwrap().as_ref(), Some(key));
            assert_eq!(other.get_by_hash(&key.hash).await.unwrap(), None);
        }
        assert_eq!(own.changes(None, 1_000).await.unwrap().events.len(), 40);
    }
    let stranger = behind.stranger().await;
    for schema in ["team_a", "team_b"] {
        assert_eq!(number(&stranger, &format!("SELECT count(*) FROM {schema}.api_key")).await, 40);
    }
    for _ in 0..5 {
        assert_eq!(settings_of_a_stranger(&behind.pooled).await, before);
    }
}

/// Another client of the same pool changes the `search_path` of the sessions.
#[tokio::test(flavor = "multi_thread")]
async fn a_search_path_that_others_leave_has_no_effect() {
    let behind = Behind::new(shared_pooler()).await;
    let other = behind.repository(in_schema("other")).await;
    let leak = async || {
        let stranger = Database::connect(&behind.pooled).await.unwrap();
        for _ in 0..20 {
            stranger.execute_unprepared("SET search_path = other").await.unwrap();
        }
    };
    leak().await;
    // The default schema is `public`, whatever the session says.
    let repository = behind.repository(few_connections()).await;
    leak().await;
    let created = repository.create(key("a"), &context()).await.unwrap();
    assert_eq!(repository.get(created.id).await.unwrap(), Some(created.clone()));
    assert_eq!(other.get_by_hash(&created.hash).await.unwrap(), None);
    assert_eq!(number(&behind.stranger().await, "SELECT count(*) FROM public.api_key").await, 1);
}

/// The limits are those of the transaction, because the session belongs to others.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_does_not_wait_longer_than_the_lock_timeout() {
    let behind = Behind::new(shared_pooler()).await;
    let options = SqlOptions { lock_timeout: std::time::Duration::from_secs(1), ..few_connections() };
    let repository = behind.repository(options).await;
    let stranger = behind.stranger().await;
    let held = stranger.begin().await.unwrap();
    held.execute_unprepared("UPDATE revision_head SET revision = revision").await.unwrap();
    let error = repository.create(key("a"), &context()).await.unwrap_err();
    assert!(format!("{error:?}").contains("lock timeout"), "{error:?}");
    held.rollback().await.unwrap();
    repository.create(key("a"), &context()).await.unwrap();
}

/// Waits for the next wake-up.
async fn is_woken(wake_ups: &mut futures_util::stream::BoxStream<'static, ()>) {
    let next = tokio::time::timeout(std::time::Duration::from_mins(1), wake_ups.next()).await;
    next.unwrap().unwrap();
}

async fn a_revocation_wakes(a: &SqlRepository, b: &SqlRepository, created: &ApiKey) {
    let mut wake_ups = b.wake_ups().unwrap();
    // The first one follows the start.
    is_woken(&mut wake_ups).await;
    a.revoke(created.id, RevokeReason::default(), &context()).await.unwrap();
    is_woken(&mut wake_ups).await;
    let found = b.get_by_hash(&created.hash).await.unwrap().unwrap();
    assert!(found.revocation.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_arrive_by_a_direct_url() {
    let behind = Behind::new(shared_pooler()).await;
    let (a, b) = (behind.repository(few_connections()).await, behind.repository(few_connections()).await);
    let created = a.create(key("a"), &context()).await.unwrap();
    a_revocation_wakes(&a, &b, &created).await;
    // Without notifications, the feed has the same events.
    let silent = b.without_notifications();
    assert!(silent.wake_ups().is_none());
    assert_eq!(silent.changes(None, 10).await.unwrap().events.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_arrive_through_a_pooler_in_session_mode() {
    let direct = Kind::Postgres.database().await;
    let (_pooler, url) = PgBouncer::Debian.start(&direct, &[]);
    let a = open(&url, Pooling::Session, few_connections()).await.unwrap();
    a.migrate().await.unwrap();
    let b = open(&url, Pooling::Session, few_connections()).await.unwrap();
    let created = a.create(key("a"), &context()).await.unwrap();
    a_revocation_wakes(&a, &b, &created).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listen_url_without_notifications_is_rejected() {
    let behind = Behind::new(shared_pooler()).await;
    let repository = open(&behind.pooled, Pooling::Transaction, few_connections()).await.unwrap();
    let pooled = repository.clone().with_listen_url(&behind.pooled).await;
    assert_refused(pooled, &["store.sql.listen_url", "transaction mode"]);

    let mut quick = few_connections();
    quick.pool.connect_timeout = std::time::Duration::from_secs(5);
    let repository = open(&behind.pooled, Pooling::Transaction, quick).await.unwrap();
    let elsewhere = repository.clone().with_listen_url(&Kind::Postgres.database().await).await;
    assert_refused(elsewhere, &["did not arrive", "same database"]);
    assert_refused(repository.clone().with_listen_url("mysql://u@h/d").await, &["PostgreSQL"]);

    // A server that can't be reached yet is not an error, because polls replace notifications.
    repository.with_listen_url("postgres://u@127.0.0.1:1/d").await.unwrap();
}

/// Policies would hide keys, so that valid ones are not found.
#[tokio::test(flavor = "multi_thread")]
async fn row_level_security_fails_lookups_and_the_feed() {
    let behind = Behind::new(shared_pooler()).await;
    let owner = behind.repository(few_connections()).await;
    let created = owner.create(key("a"), &context()).await.unwrap();
    let stranger = behind.stranger().await;
    let role = format!("behind_{}", name_of(&behind.direct));
    for sql in [
        format!("CREATE ROLE {role} LOGIN"),
        format!("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"),
    ] {
        stranger.execute_unprepared(&sql).await.unwrap();
    }
    let direct = behind.direct.replace("postgres@", &format!("{role}@"));
    let (_pooler, url) = PgBouncer::Current.start(&direct, &[TRANSACTION_MODE]);
    let runner = open(&url, Pooling::Transaction, few_connections()).await.unwrap();
    assert_eq!(runner.get_by_hash(&created.hash).await.unwrap(), Some(created.clone()));
    runner.changes(None, 10).await.unwrap();

    stranger.execute_unprepared("ALTER TABLE api_key ENABLE ROW LEVEL SECURITY").await.unwrap();
    let error = runner.get_by_hash(&created.hash).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    // Sessions from before ALTER ROLE lack the default, but no poll confirms what they return.
    let error = runner.changes(None, 10).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
}

/// The program with its settings, through `PgBouncer` in transaction mode.
#[tokio::test(flavor = "multi_thread")]
async fn servers_work_behind_a_pooler_in_transaction_mode() {
    let behind = Behind::new(shared_pooler()).await;
    let Behind { direct, pooled } = &behind;
    let store = [format!("store.url={pooled}"), "store.sql.pooling=transaction".to_owned()];
    let listening = format!("store.sql.listen_url={direct}");
    let stranger = behind.stranger().await;
    let channels =
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()";
    tokio::task::spawn_blocking(move || {
        let [url, pooling] = store.each_ref().map(String::as_str);
        let home = Home::new();
        let undecided = home.run(&["migrate", "up", "--set", url, "--set", pooling]);
        assert_eq!(undecided.status, 1);
        assert!(undecided.stderr.contains("store.sql.listen_url"), "{}", undecided.stderr);
        let migrated = home.run(&["migrate", "up", "--set", url, "--set", pooling, "--set", &listening]);
        assert_eq!(migrated.status, 0, "{}", migrated.stderr);
        // The cache keeps records until an event arrives.
        let settings =
            [url, pooling, "admin.insecure=true", "feed.poll_interval=3m", "cache.max_staleness=10m"];
        let other_home = Home::new();
        let [a, b] =
            [&home, &other_home].map(|home| home.serve(&[&settings[..], &[listening.as_str()]].concat()));
        let created = home.create_key(&a, &[]);
        let (id, secret) = (created["key"]["id"].as_str().unwrap(), created["secret"].as_str().unwrap());
        assert_eq!(home.validate(&b, secret).0, 0);
        home.json(&a, &["key", "revoke", id]);
        crate::process::program::wait_for("the revocation at the other replica", || {
            (home.validate(&b, secret).1 == "REASON_REVOKED").then_some(())
        });

        let silent =
            [url, pooling, "admin.insecure=true", "store.sql.listen_url=off", "telemetry.log_format=json"];
        let home = Home::new();
        let server = home.serve(&silent);
        assert!(home.log().iter().any(|entry| entry.to_string().contains("feed.poll_interval")));
        home.create_key(&server, &[]);
    })
    .await
    .unwrap();
    until("the listeners' end", async || number(&stranger, channels).await == 0).await;
}
