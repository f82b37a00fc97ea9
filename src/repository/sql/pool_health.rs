//! Features that the drivers' pools lack. Connections to a server that was demoted or vanished are replaced,
//! connections are tested after failures before they are used again, and they are renewed one after the
//! other.
//!
//! sqlx calls the hooks of this module before it hands out a connection and when a connection is returned.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sea_orm::sqlx::pool::PoolOptions as DriverPoolOptions;
use sea_orm::sqlx::{Connection as _, Database, Sqlite, SqliteConnection};
use tokio::time::Instant;

use super::SqlOptions;
use crate::repository::Result;

/// Timeout for the test of a connection.
const TEST_TIMEOUT: Duration = Duration::from_millis(500);
/// Idle time after which a connection is tested before it is used, because a firewall may have dropped it.
const TEST_AFTER_IDLE: Duration = Duration::from_secs(15);
/// Minimum time between two replacements of all connections to a server that accepts no changes.
const LEAVE_INTERVAL: Duration = Duration::from_secs(2);
/// Minimum time between two attempts to determine why connecting fails.
const EXPLANATION_INTERVAL: Duration = Duration::from_secs(1);
/// Time after a failure during which every connection is tested.
const SUSPICION: Duration = Duration::from_secs(10);

/// State of a pool's connections that the driver does not have. All times are microseconds since `opened`.
#[derive(Debug)]
pub(super) struct PoolHealth {
    opened: Instant,
    /// Connections that were established before this instant are not used any more.
    replace_before: AtomicU64,
    /// Until this instant, every connection is tested before it is used and when it is returned.
    suspect_until: AtomicU64,
    /// The earliest instant for the next renewal of a connection.
    next_renewal: AtomicU64,
    /// The earliest instant for determining again why connecting fails.
    next_explanation: AtomicU64,
    renew_after: Duration,
    renewal_interval: Duration,
}

impl PoolHealth {
    pub(super) fn new(options: &SqlOptions, max_connections: u32) -> Result<Self> {
        let mut random = [0];
        options.entropy.fill(&mut random)?;
        let lifetime = options.pool.max_lifetime;
        // Between three quarters and seven eighths, so that processes that started at the same time renew at
        // different times.
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

    /// Replaces all existing connections, because the server may have changed.
    pub(super) fn replace_all(&self) {
        self.replace_before.fetch_max(self.now(), Ordering::Relaxed);
    }

    /// Replaces all connections, because the server accepts no changes and its name may lead to another
    /// server by now. Does nothing and returns false within [`LEAVE_INTERVAL`] after the last time, so that a
    /// read-only server is not flooded with new connections.
    pub(super) fn leave_server(&self) -> bool {
        let (now, last) = (self.now(), self.replace_before.load(Ordering::Relaxed));
        let is_due = last == 0 || now >= last + micros(LEAVE_INTERVAL);
        if is_due {
            self.replace_all();
        }
        is_due
    }

    /// Causes all connections to be tested for a while, because one of them did not answer.
    pub(super) fn suspect(&self) {
        self.suspect_until.fetch_max(self.now() + micros(SUSPICION), Ordering::Relaxed);
    }

    /// Returns the settings of a driver's pool with the hooks of this module.
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
                    // A change inside another transaction would only be a savepoint, whose commit commits
                    // nothing.
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
                    // sqlx tests it, too, but without a timeout.
                    Ok(!health.is_suspect() || health.test::<DB>(connection).await)
                })
            })
    }

    /// Returns the settings of a pool of connections to a SQLite file. Sound connections are kept without a
    /// time limit, because a local file has no idle timeout.
    ///
    /// SQLite rolls a transaction back by itself when the disk is full or an I/O error occurs. The driver
    /// does not detect that. Its own rollback then fails, it still counts the transaction as open, and every
    /// later change only ends a savepoint and is never committed. Such a connection must not be used again.
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
                    // The connection's thread rolls back a dropped transaction before it handles this ping.
                    let answers = connection.ping().await.is_ok();
                    Ok(answers && !health.is_outdated(met.age) && !connection.is_in_transaction())
                })
            })
    }

    fn is_outdated(&self, age: Duration) -> bool {
        let made = self.now().saturating_sub(micros(age));
        made < self.replace_before.load(Ordering::Relaxed)
    }

    /// Returns whether one of the connections recently did not answer.
    pub(super) fn is_suspect(&self) -> bool {
        self.now() < self.suspect_until.load(Ordering::Relaxed)
    }

    /// Returns whether the connection is due for renewal and no other one was renewed within the interval.
    fn takes_renewal(&self, age: Duration) -> bool {
        age > self.renew_after && self.takes_turn(&self.next_renewal, self.renewal_interval)
    }

    /// Returns whether the caller may determine why connecting fails. One caller may per
    /// [`EXPLANATION_INTERVAL`].
    pub(super) fn takes_explanation(&self) -> bool {
        self.takes_turn(&self.next_explanation, EXPLANATION_INTERVAL)
    }

    /// Returns whether the instant `next` has come, and moves it to `interval` from now. Of concurrent
    /// callers, only one succeeds.
    fn takes_turn(&self, next: &AtomicU64, interval: Duration) -> bool {
        let (now, due) = (self.now(), next.load(Ordering::Relaxed));
        let later = now + micros(interval);
        now >= due && next.compare_exchange(due, later, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Returns whether the connection answers. If it does not answer in time, assume that all existing
    /// connections are dead, and replace them instead of testing each.
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
    fn failed_calls_make_connections_suspect() {
        let health = health();
        assert!(!health.is_suspect());
        health.suspect();
        assert!(health.is_suspect());
    }
}
