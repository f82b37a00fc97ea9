//! The hot path: parse → hash → find → judge.

use std::sync::Arc;

use super::{ServiceError, UsageRecorder};
use crate::domain::{ApiKey, Clock, Denial, KeyFormat, ScopeMatch, ScopeSet, Verdict, judge};
use crate::repository::KeyRepository;

/// Decides whether keys may be used.
#[derive(Clone, Debug)]
pub struct ValidatorService {
    repository: Arc<dyn KeyRepository>,
    format: Arc<KeyFormat>,
    clock: Arc<dyn Clock>,
    usage: Arc<UsageRecorder>,
}

/// A verdict, and the key it is about if there is one.
#[derive(Clone, Debug)]
pub struct Validation {
    /// The answer.
    pub verdict: Verdict,
    /// The key that was judged; `None` if it was malformed or not found.
    pub key: Option<ApiKey>,
}

impl ValidatorService {
    /// Judges the keys of `repository` by `clock` and notes their use in `usage`.
    pub fn new(
        repository: Arc<dyn KeyRepository>,
        format: Arc<KeyFormat>,
        clock: Arc<dyn Clock>,
        usage: Arc<UsageRecorder>,
    ) -> Self {
        Self { repository, format, clock, usage }
    }

    /// Judges the key string `secret`. A malformed one costs no look-up.
    ///
    /// # Errors
    /// The store could not be asked: neither allowed nor denied.
    pub async fn validate(
        &self,
        secret: String,
        required: &ScopeSet,
        scope_match: ScopeMatch,
    ) -> Result<Validation, ServiceError> {
        let Some(secret) = self.format.parse(secret) else {
            return Ok(Validation { verdict: Verdict::Denied(Denial::Malformed), key: None });
        };
        let Some(key) = self.repository.get_by_hash(&secret.hash()).await? else {
            return Ok(Validation { verdict: Verdict::Denied(Denial::NotFound), key: None });
        };
        // The clock is read after the look-up: an expiry that passed meanwhile counts.
        let now = self.clock.now();
        let verdict = judge(&key, required, scope_match, now);
        if verdict == Verdict::Allowed {
            self.usage.note(key.id, now);
        }
        Ok(Validation { verdict, key: Some(key) })
    }
}
