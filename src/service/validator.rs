//! The hot path: parse → hash → find → judge.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::Instrument as _;

use super::{ServiceError, UsageRecorder};
use crate::cache::{Demand, KeySource, Knowledge, Tier};
use crate::domain::{ApiKey, Clock, Denial, KeyFormat, Revision, ScopeMatch, ScopeSet, Verdict, judge};
use crate::repository::{ErrorKind, RepositoryError};
use crate::telemetry::ValidationMetrics;

/// Decides whether keys may be used.
#[derive(Clone, Debug)]
pub struct ValidatorService {
    source: Arc<dyn KeySource>,
    knowledge: Arc<Knowledge>,
    max_staleness: Duration,
    format: Arc<KeyFormat>,
    clock: Arc<dyn Clock>,
    usage: Arc<UsageRecorder>,
    metrics: ValidationMetrics,
}

/// A verdict, and the key it is about if there is one.
#[derive(Clone, Debug)]
pub struct Validation {
    /// The answer.
    pub verdict: Verdict,
    /// The key that was judged; `None` if it was malformed or not found.
    pub key: Option<Arc<ApiKey>>,
    /// What the answer rests on; `None` if nothing was looked up.
    pub freshness: Option<Freshness>,
}

/// How fresh the record was that was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// Where it came from.
    pub tier: Tier,
    /// How long ago, at most, the store was as it says.
    pub staleness: Duration,
    /// It reflects every change of the key up to this revision.
    pub revision: Revision,
}

/// Limits the lookups of validations that the local cache can't answer.
#[derive(Clone, Copy, Debug)]
pub enum Lookups<'l> {
    /// Not limited here.
    Unlimited,
    /// Rejected unless the semaphore has a permit, which is held for the duration of the lookup.
    Limited(&'l Semaphore),
    /// Rejected.
    Rejected,
}

impl<'l> Lookups<'l> {
    fn begin(self) -> Result<Option<SemaphorePermit<'l>>, ServiceError> {
        let permit = match self {
            Self::Unlimited => return Ok(None),
            Self::Limited(semaphore) => semaphore.try_acquire().ok(),
            Self::Rejected => None,
        };
        let rejected = || RepositoryError::new(ErrorKind::Overloaded, "too many concurrent lookups");
        permit.map(Some).ok_or_else(|| rejected().into())
    }
}

impl ValidatorService {
    /// Judges the keys of `source`, by default as they were at most `max_staleness` ago as far as `knowledge` goes, by
    /// `clock`, and notes their use in `usage`.
    pub fn new(
        source: Arc<dyn KeySource>,
        knowledge: Arc<Knowledge>,
        max_staleness: Duration,
        format: Arc<KeyFormat>,
        clock: Arc<dyn Clock>,
        usage: Arc<UsageRecorder>,
    ) -> Self {
        let metrics = ValidationMetrics::default();
        Self { source, knowledge, max_staleness, format, clock, usage, metrics }
    }

    /// The same, counted in `metrics`.
    #[must_use]
    pub fn with_metrics(self, metrics: ValidationMetrics) -> Self {
        Self { metrics, ..self }
    }

    /// Judges the key string `secret`. A malformed one costs no look-up. The record is at most `max_staleness` old, and never
    /// older than the server allows.
    ///
    /// # Errors
    /// The store could not be asked, or `lookups` rejects a lookup: neither allowed nor denied.
    pub async fn validate(
        &self,
        secret: String,
        required: &ScopeSet,
        scope_match: ScopeMatch,
        max_staleness: Option<Duration>,
        lookups: Lookups<'_>,
    ) -> Result<Validation, ServiceError> {
        let validation = self.judge(secret, required, scope_match, max_staleness, lookups).await?;
        self.metrics.verdict(match validation.verdict {
            Verdict::Allowed => "allowed",
            Verdict::Denied(denial) => denial.name(),
        });
        Ok(validation)
    }

    async fn judge(
        &self,
        secret: String,
        required: &ScopeSet,
        scope_match: ScopeMatch,
        max_staleness: Option<Duration>,
        lookups: Lookups<'_>,
    ) -> Result<Validation, ServiceError> {
        let Some(secret) = self.format.parse(secret) else {
            let verdict = Verdict::Denied(Denial::Malformed);
            return Ok(Validation { verdict, key: None, freshness: None });
        };
        let hash = secret.hash();
        let max_staleness = max_staleness.map_or(self.max_staleness, |asked| asked.min(self.max_staleness));
        let demand = Demand { asked_at: self.knowledge.moment(), max_staleness };
        let found = if let Some(found) = self.source.peek(&hash, &demand) {
            found
        } else {
            let _slot = lookups.begin()?;
            let found = self.source.find(&hash, &demand).instrument(tracing::debug_span!("lookup")).await?;
            self.metrics.looked_up(self.knowledge.moment().since(demand.asked_at));
            found
        };
        self.metrics.found_in(found.tier.name());
        let freshness = Some(Freshness {
            tier: found.tier,
            staleness: self.knowledge.moment().since(found.as_of),
            revision: found.entry.through.revision,
        });
        let Some(key) = found.entry.key else {
            return Ok(Validation { verdict: Verdict::Denied(Denial::NotFound), key: None, freshness });
        };
        // The clock is read after the look-up: an expiry that passed meanwhile counts.
        let now = self.clock.now();
        let verdict = judge(&key, required, scope_match, now);
        if verdict == Verdict::Allowed {
            self.usage.note(key.id, now);
        }
        Ok(Validation { verdict, key: Some(key), freshness })
    }
}
