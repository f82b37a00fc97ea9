//! Metrics that are read when they are collected.

use std::sync::Arc;

use prometheus_client::registry::Unit;
use tokio::sync::watch;

use super::store::PoolReader;
use crate::cache::{Breaker, Knowledge, MokaCache};
use crate::repository::unreadable_counts;
use crate::server::Tls;
use crate::service::UsageRecorder;
use crate::telemetry::Reading;

/// The sources of the readings.
pub(super) struct Sources {
    pub(super) knowledge: Arc<Knowledge>,
    pub(super) breaker: Arc<Breaker>,
    pub(super) local: Option<MokaCache>,
    pub(super) usage: Arc<UsageRecorder>,
    pub(super) is_up: watch::Receiver<bool>,
    pub(super) pools: Option<PoolReader>,
    pub(super) tls: Option<watch::Receiver<Arc<Tls>>>,
}

impl Sources {
    /// Returns all readings. Readings with the same name are adjacent.
    pub(super) fn read(&self) -> Vec<Reading> {
        let mut readings = self.state();
        readings.extend(unreadable());
        readings.extend(self.ages());
        readings.extend(self.cache_entries());
        readings.extend(self.connections());
        readings
    }

    fn state(&self) -> Vec<Reading> {
        vec![
            plain("store_up", "1 if the backend responds, otherwise 0", flag(*self.is_up.borrow())),
            plain(
                "store_breaker_open",
                "1 if lookups are rejected because the backend does not respond, otherwise 0",
                flag(self.breaker.is_open()),
            ),
            plain(
                "feed_fences",
                "Recently changed keys that have their own smallest servable revision",
                count(self.knowledge.fences()),
            ),
            plain(
                "usage_pending",
                "Keys whose last use is not yet written to the backend",
                count(self.usage.waiting()),
            ),
        ]
    }

    fn ages(&self) -> impl Iterator<Item = Reading> {
        let feed = self.knowledge.feed_age().map(|age| {
            plain("feed_age", "Time since the change feed was known to be complete", age.as_secs_f64())
        });
        let not_after = self.tls.as_ref().and_then(|tls| tls.borrow().not_after());
        let certificate = not_after.map(|not_after| {
            plain(
                "tls_certificate_expiry_timestamp",
                "Unix time at which the first certificate of the server's chain expires",
                whole(u64::try_from(not_after).unwrap_or_default()),
            )
        });
        feed.into_iter().chain(certificate).map(|reading| Reading { unit: Some(Unit::Seconds), ..reading })
    }

    fn cache_entries(&self) -> impl Iterator<Item = Reading> {
        const HELP: &str = "Entries of the cache in the process: records and negative entries";
        let counts = self.local.as_ref().map(MokaCache::len);
        let kinds =
            counts.into_iter().flat_map(|(present, absent)| [("present", present), ("absent", absent)]);
        kinds.map(|(kind, entries)| Reading {
            labels: vec![("kind", kind.to_owned())],
            ..plain("cache_entries", HELP, whole(entries))
        })
    }

    fn connections(&self) -> impl Iterator<Item = Reading> {
        const HELP: &str = "Connections to the database by pool and state";
        self.pools.iter().flat_map(|pools| pools()).flat_map(|(pool, open, idle)| {
            let used = usize::try_from(open).unwrap_or_default().saturating_sub(idle);
            [("idle", idle), ("used", used)].map(|(state, connections)| Reading {
                labels: vec![("pool", pool.to_owned()), ("state", state.to_owned())],
                ..plain("store_connections", HELP, count(connections))
            })
        })
    }
}

fn unreadable() -> [Reading; 2] {
    const HELP: &str = "Stored keys and events that were skipped since startup because they can't be read";
    let (keys, events) = unreadable_counts();
    [("key", keys), ("event", events)].map(|(kind, skipped)| Reading {
        labels: vec![("kind", kind.to_owned())],
        ..plain("unreadable_items", HELP, whole(skipped))
    })
}

fn plain(name: &'static str, help: &'static str, value: f64) -> Reading {
    Reading { name, help, unit: None, labels: Vec::new(), value }
}

fn flag(is_set: bool) -> f64 {
    f64::from(u8::from(is_set))
}

fn count(number: usize) -> f64 {
    whole(u64::try_from(number).unwrap_or(u64::MAX))
}

#[expect(clippy::cast_precision_loss, reason = "a gauge of Prometheus is a float")]
fn whole(number: u64) -> f64 {
    number as f64
}
