//! The hot path of a validation: parse, hash, look up, judge.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::Instrument as _;

use super::{ServiceError, UsageRecorder};
use crate::cache::{Demand, KeySource, Knowledge, Tier};
use crate::domain::{
    ApiKey, Clock, Denial, KeyFormat, Moment, Revision, ScopeMatch, ScopeSet, Timestamp, Verdict, judge,
};
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

/// A verdict, and the key that was judged.
#[derive(Clone, Debug)]
pub struct Validation {
    /// The verdict.
    pub verdict: Verdict,
    /// The key that was judged. `None` if the key string was malformed or not found.
    pub key: Option<Arc<ApiKey>>,
    /// Freshness of the record. `None` if nothing was looked up.
    pub freshness: Option<Freshness>,
}

/// The freshness of the record that was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// The tier that the record came from.
    pub tier: Tier,
    /// Upper bound on how old the backend's state in the answer is.
    pub staleness: Duration,
    /// Revision up to which the record reflects all changes of the key.
    pub revision: Revision,
}

/// Limit for lookups of validations that the local cache can't answer.
#[derive(Clone, Copy, Debug)]
pub enum Lookups<'l> {
    /// Lookups are not limited here.
    Unlimited,
    /// A lookup is rejected unless the semaphore has a permit, which is held for the duration of the lookup.
    Limited(&'l Semaphore),
    /// Lookups are rejected.
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
    /// Creates a service that judges the keys of `source` at the time of `clock`, and records their use in
    /// `usage`. By default, `max_staleness` is the maximum staleness of a record. `knowledge` measures it.
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

    /// Returns the service with its validations counted in `metrics`.
    #[must_use]
    pub fn with_metrics(self, metrics: ValidationMetrics) -> Self {
        Self { metrics, ..self }
    }

    /// Returns the current time, by which expiry is judged.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Returns the current moment, by which staleness is measured.
    #[must_use]
    pub fn moment(&self) -> Moment {
        self.knowledge.moment()
    }

    /// Judges the key string `secret`. A malformed string is not looked up. The staleness of the record is at
    /// most `max_staleness`, and never more than the server allows.
    ///
    /// # Errors
    /// Returns an error if the lookup failed, or if `lookups` rejects it. The key is then neither allowed nor
    /// denied.
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
        let max_staleness =
            max_staleness.map_or(self.max_staleness, |requested| requested.min(self.max_staleness));
        let demand = Demand { asked_at: self.knowledge.moment(), max_staleness };
        let found = if let Some(found) = self.source.peek(&hash, &demand) {
            found
        } else {
            let _permit = lookups.begin()?;
            let found = self.source.find(&hash, &demand).instrument(tracing::debug_span!("lookup")).await?;
            self.metrics.looked_up(self.knowledge.moment().since(demand.asked_at));
            found
        };
        self.metrics.found_in(found.tier.name());
        let freshness = Some(Freshness {
            tier: found.tier,
            staleness: self.knowledge.moment().since(found.as_of),
            revision: found.entry.applied_revision.revision,
        });
        let Some(key) = found.entry.key else {
            return Ok(Validation { verdict: Verdict::Denied(Denial::NotFound), key: None, freshness });
        };
        // The clock is read after the lookup, so that an expiry in the meantime counts.
        let now = self.clock.now();
        let verdict = judge(&key, required, scope_match, now);
        if verdict == Verdict::Allowed {
            self.usage.note(key.id, now);
        }
        Ok(Validation { verdict, key: Some(key), freshness })
    }
}
