//! What the drivers' pools lack: connections to a server that was demoted or is gone are replaced, none is used again
//! without a test after trouble, and they are renewed one after the other.
//!
//! sqlx asks the hooks here before it hands out a connection and when it takes one back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sea_orm::sqlx::pool::PoolOptions as DriverPoolOptions;
use sea_orm::sqlx::{Connection as _, Database, Sqlite, SqliteConnection};
use tokio::time::Instant;

use super::SqlOptions;
use crate::repository::Result;

/// How long a connection may take to answer a test.
const TEST_TIMEOUT: Duration = Duration::from_millis(500);
/// A connection that was idle for longer is tested before it is used: a firewall may have forgotten it.
const TEST_AFTER_IDLE: Duration = Duration::from_secs(15);
/// Minimum time between two replacements of all connections to a server that accepts no changes.
const LEAVE_INTERVAL: Duration = Duration::from_secs(2);
/// Minimum time between two attempts to find out why connecting fails.
const EXPLANATION_INTERVAL: Duration = Duration::from_secs(1);
/// How long after trouble every connection is tested.
const SUSPICION: Duration = Duration::from_secs(10);

/// What is known of a pool's connections beyond what the driver knows. All times are microseconds since `opened`.
#[derive(Debug)]
pub(super) struct PoolHealth {
    opened: Instant,
    /// Connections that were made before this instant are not used any more.
    replace_before: AtomicU64,
    /// Until then, every connection is tested before it is used and when it comes back.
    suspect_until: AtomicU64,
    /// No connection is renewed before this instant.
    next_renewal: AtomicU64,
    /// Earliest instant for finding out again why connecting fails.
    next_explanation: AtomicU64,
    renew_after: Duration,
    renewal_interval: Duration,
}

impl PoolHealth {
    pub(super) fn new(options: &SqlOptions, max_connections: u32) -> Result<Self> {
        let mut random = [0];
        options.entropy.fill(&mut random)?;
        let lifetime = options.pool.max_lifetime;
        // Between three quarters and seven eighths: processes that were started at once renew at different times.
        let renew_after = lifetime * 3 / 4 + lifetime / 8 * u32::from(random[0]) / 255;
        Ok(Self {
            opened: Instant::now(),
            replace_before: AtomicU64::new(0),
            suspect_until: AtomicU64::new(0),
            next_renewal: AtomicU64::new(0),
            next_explanation: AtomicU64::new(0),
            renew_after,
            renewal_interval: lifetime / 8 / max_connections.max(1),
        })
    }

    /// Has all connections that exist replaced by new ones: the server is not what it was.
    pub(super) fn replace_all(&self) {
        self.replace_before.fetch_max(self.now(), Ordering::Relaxed);
    }

    /// Replaces all connections, because the server accepts no changes and the same name may lead to another one by now. Does
    /// nothing and returns false within [`LEAVE_INTERVAL`] after the last time, so that a read-only server is not flooded with
    /// new connections.
    pub(super) fn leave_server(&self) -> bool {
        let (now, last) = (self.now(), self.replace_before.load(Ordering::Relaxed));
        let is_due = last == 0 || now >= last + micros(LEAVE_INTERVAL);
        if is_due {
            self.replace_all();
        }
        is_due
    }

    /// Has all connections tested for a while: one of them did not answer.
    pub(super) fn suspect(&self) {
        self.suspect_until.fetch_max(self.now() + micros(SUSPICION), Ordering::Relaxed);
    }

    /// The settings of a driver's pool that asks here.
    pub(super) fn guard<DB: Database>(
        self: &Arc<Self>,
        options: &SqlOptions,
        max_connections: u32,
    ) -> DriverPoolOptions<DB> {
        let before = Arc::clone(self);
        let after = Arc::clone(self);
        DriverPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(options.pool.acquire_timeout)
            .idle_timeout(options.pool.idle_timeout)
            .max_lifetime(options.pool.max_lifetime)
            .test_before_acquire(false)
            .before_acquire(move |connection: &mut DB::Connection, met| {
                let health = Arc::clone(&before);
                Box::pin(async move {
                    // A change that began inside another transaction would only be a savepoint of that one: its commit would
                    // commit nothing.
                    if health.is_outdated(met.age) || connection.is_in_transaction() {
                        return Ok(false);
                    }
                    let is_doubtful = health.is_suspect() || met.idle_for > TEST_AFTER_IDLE;
                    Ok(!is_doubtful || health.test::<DB>(connection).await)
                })
            })
            .after_release(move |connection, met| {
                let health = Arc::clone(&after);
                Box::pin(async move {
                    if health.is_outdated(met.age) || health.takes_renewal(met.age) {
                        return Ok(false);
                    }
                    // sqlx tests it too, but without a deadline.
                    Ok(!health.is_suspect() || health.test::<DB>(connection).await)
                })
            })
    }

    /// Returns the settings of a pool of connections to a SQLite file. The connections are kept for as long as they are
    /// sound: a local file doesn't hang up.
    ///
    /// SQLite rolls a transaction back by itself when the disk is full or an I/O error occurs. The driver doesn't notice:
    /// its own rollback then fails, it still counts the transaction as open, and every later change only ends a savepoint
    /// and is never committed. Such a connection must not be used again.
    pub(super) fn guard_file(self: &Arc<Self>) -> DriverPoolOptions<Sqlite> {
        let before = Arc::clone(self);
        let after = Arc::clone(self);
        DriverPoolOptions::new()
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .before_acquire(move |connection: &mut SqliteConnection, met| {
                let is_sound = !before.is_outdated(met.age) && !connection.is_in_transaction();
                Box::pin(std::future::ready(Ok(is_sound)))
            })
            .after_release(move |connection: &mut SqliteConnection, met| {
                let health = Arc::clone(&after);
                Box::pin(async move {
                    // A dropped transaction is rolled back by the connection's thread, ahead of this ping.
                    let answers = connection.ping().await.is_ok();
                    Ok(answers && !health.is_outdated(met.age) && !connection.is_in_transaction())
                })
            })
    }

    fn is_outdated(&self, age: Duration) -> bool {
        let made = self.now().saturating_sub(micros(age));
        made < self.replace_before.load(Ordering::Relaxed)
    }

    /// Whether one of the connections did not answer lately.
    pub(super) fn is_suspect(&self) -> bool {
        self.now() < self.suspect_until.load(Ordering::Relaxed)
    }

    /// Whether the connection is old, and its turn has come.
    fn takes_renewal(&self, age: Duration) -> bool {
        age > self.renew_after && self.takes_turn(&self.next_renewal, self.renewal_interval)
    }

    /// Returns whether the caller may find out why connecting fails: one may per [`EXPLANATION_INTERVAL`].
    pub(super) fn takes_explanation(&self) -> bool {
        self.takes_turn(&self.next_explanation, EXPLANATION_INTERVAL)
    }

    /// Returns whether the instant `next` has come, and moves it `interval` ahead of now. Of concurrent callers one succeeds.
    fn takes_turn(&self, next: &AtomicU64, interval: Duration) -> bool {
        let (now, due) = (self.now(), next.load(Ordering::Relaxed));
        let later = now + micros(interval);
        now >= due && next.compare_exchange(due, later, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Whether the connection answers. If it doesn't, those of its age won't either, and are not asked one by one.
    async fn test<DB: Database>(&self, connection: &mut DB::Connection) -> bool {
        if let Ok(answer) = tokio::time::timeout(TEST_TIMEOUT, connection.ping()).await {
            return answer.is_ok();
        }
        self.replace_all();
        false
    }

    fn now(&self) -> u64 {
        micros(self.opened.elapsed())
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> PoolHealth {
        PoolHealth::new(&SqlOptions::default(), 16).unwrap()
    }

    #[test]
    fn connections_from_before_a_demotion_are_replaced() {
        let health = health();
        assert!(!health.is_outdated(Duration::from_hours(1)));
        std::thread::sleep(Duration::from_millis(2));
        health.replace_all();
        assert!(health.is_outdated(Duration::from_millis(1)));
        assert!(!health.is_outdated(Duration::ZERO), "one that is made now is good");
    }

    #[test]
    fn old_connections_are_renewed_one_at_a_time() {
        let health = health();
        let lifetime = SqlOptions::default().pool.max_lifetime;
        assert!(!health.takes_renewal(lifetime / 2));
        assert!(health.takes_renewal(lifetime));
        assert!(!health.takes_renewal(lifetime), "the next one has to wait");
    }

    #[test]
    fn suspicion_passes() {
        let health = health();
        assert!(!health.is_suspect());
        health.suspect();
        assert!(health.is_suspect());
    }
}
