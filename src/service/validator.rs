//! The hot path: parse → hash → find → judge.

use std::sync::Arc;
use std::time::Duration;

use super::{ServiceError, UsageRecorder};
use crate::cache::{Demand, KeySource, Knowledge, Tier};
use crate::domain::{ApiKey, Clock, Denial, KeyFormat, Revision, ScopeMatch, ScopeSet, Verdict, judge};
use tracing::Instrument as _;

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

    /// Returns whether [`validate`](Self::validate) would have to wait for a lookup.
    #[must_use]
    pub fn needs_lookup(&self, secret: &str, max_staleness: Option<Duration>) -> bool {
        let Some(secret) = self.format.parse(secret.to_owned()) else { return false };
        self.source.peek(&secret.hash(), &self.demand(max_staleness)).is_none()
    }

    /// Returns the demand of a call that begins now, capped by the configured maximum staleness.
    fn demand(&self, max_staleness: Option<Duration>) -> Demand {
        let max_staleness = max_staleness.map_or(self.max_staleness, |asked| asked.min(self.max_staleness));
        Demand { asked_at: self.knowledge.moment(), max_staleness }
    }

    /// Judges the key string `secret`. A malformed one costs no look-up. The record is at most `max_staleness` old, and never
    /// older than the server allows.
    ///
    /// # Errors
    /// The store could not be asked: neither allowed nor denied.
    pub async fn validate(
        &self,
        secret: String,
        required: &ScopeSet,
        scope_match: ScopeMatch,
        max_staleness: Option<Duration>,
    ) -> Result<Validation, ServiceError> {
        let validation = self.judge(secret, required, scope_match, max_staleness).await?;
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
    ) -> Result<Validation, ServiceError> {
        let Some(secret) = self.format.parse(secret) else {
            let verdict = Verdict::Denied(Denial::Malformed);
            return Ok(Validation { verdict, key: None, freshness: None });
        };
        let hash = secret.hash();
        let demand = self.demand(max_staleness);
        let found = if let Some(found) = self.source.peek(&hash, &demand) {
            found
        } else {
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
