//! Fails loads quickly during an outage of the backend. After a few failures, only occasional probes wait for
//! it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::domain::{Entropy, KeyHash, Moment, Stopwatch};
use crate::repository::{ErrorKind, RepositoryError, Result, part_of};

/// Number of consecutive failures after which the breaker opens.
const FAILURES: u32 = 5;
/// Time from opening to the first probe. It doubles after each failed probe.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Maximum time between probes.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Timeout of a probe, after which another probe is allowed.
const PROBE_TIME: Duration = Duration::from_secs(5);

/// Lets loads through while the backend answers. During an outage, only one probe at a time is let through,
/// after pauses of random length, so that replicas don't all return at once to a backend that recovers.
///
/// Each partition of the feed has its own state. On a cluster, the outage of one partition therefore does not
/// affect loads of the others.
#[derive(Debug)]
pub struct Breaker {
    parts: Box<[Mutex<State>]>,
    stopwatch: Arc<dyn Stopwatch>,
    entropy: Arc<dyn Entropy>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed { failures: u32 },
    Open { until: Moment, pause: Duration },
}

impl Breaker {
    /// Creates a closed breaker, which lets all loads through, for a feed with `parts` partitions.
    pub fn new(parts: u8, stopwatch: Arc<dyn Stopwatch>, entropy: Arc<dyn Entropy>) -> Self {
        let parts = (0..parts.max(1)).map(|_| Mutex::new(State::Closed { failures: 0 })).collect();
        Self { parts, stopwatch, entropy }
    }

    /// Checks whether a load of `hash` may begin. The caller has to report its outcome with [`Asked::ended`].
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] while the breaker is open and no probe is due.
    pub(super) fn check(&self, hash: &KeyHash) -> Result<Asked<'_>> {
        let part = part_of(hash.as_bytes()[0], self.parts.len());
        let mut state = self.lock(part);
        if let State::Open { until, pause } = *state {
            let now = self.stopwatch.moment();
            if now < until {
                return Err(RepositoryError::new(ErrorKind::Unavailable, "the store did not answer lately"));
            }
            // This load is the probe. Further loads are rejected until it ends.
            *state = State::Open { until: now.after(PROBE_TIME), pause };
        }
        drop(state);
        Ok(Asked { breaker: self, part, has_ended: false })
    }

    /// Returns whether loads of any partition are rejected at this moment.
    #[must_use]
    pub fn is_open(&self) -> bool {
        (0..self.parts.len()).any(|part| matches!(*self.lock(part), State::Open { .. }))
    }

    /// Reports that a poll of the feed was answered by all partitions except those in `unanswered`.
    pub(super) fn poll_answered(&self, unanswered: &[u8]) {
        for (number, part) in (0..).zip(0..self.parts.len()) {
            if !unanswered.contains(&number) {
                self.report(part, false);
            }
        }
    }

    /// Reports that a poll of the feed failed. If there are several partitions, it is unknown which one
    /// failed, so the report is ignored.
    pub(super) fn poll_failed(&self, error: &RepositoryError) {
        if self.parts.len() == 1 {
            self.report(0, is_outage(error));
        }
    }

    fn report(&self, part: usize, is_outage: bool) {
        let mut state = self.lock(part);
        *state = match *state {
            _ if !is_outage => State::Closed { failures: 0 },
            State::Closed { failures } if failures + 1 < FAILURES => State::Closed { failures: failures + 1 },
            State::Closed { .. } => self.open(FIRST_PAUSE),
            State::Open { pause, .. } => self.open((pause * 2).min(LONGEST_PAUSE)),
        };
    }

    /// Returns the open state, for 0.5 to 1.5 times `pause`.
    fn open(&self, pause: Duration) -> State {
        let mut random = [0];
        // Without random bytes, replicas may probe at the same time, which is harmless.
        let _ = self.entropy.fill(&mut random);
        let length = pause / 2 + pause * u32::from(random[0]) / 255;
        State::Open { until: self.stopwatch.moment().after(length), pause }
    }

    // A poisoned lock is usable, because changes of the state can't panic halfway.
    fn lock(&self, part: usize) -> MutexGuard<'_, State> {
        self.parts[part].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_outage(error: &RepositoryError) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout)
}

/// A load that was let through. If it is dropped without an outcome, it is reported as a timeout.
#[derive(Debug)]
pub(super) struct Asked<'b> {
    breaker: &'b Breaker,
    part: usize,
    has_ended: bool,
}

impl Asked<'_> {
    /// Reports the outcome of the load.
    pub(super) fn ended<T>(mut self, outcome: &Result<T>) {
        self.has_ended = true;
        self.breaker.report(self.part, outcome.as_ref().is_err_and(is_outage));
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            self.breaker.report(self.part, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ManualStopwatch, SystemEntropy};

    fn breaker(parts: u8) -> (Breaker, Arc<ManualStopwatch>) {
        let stopwatch = Arc::new(ManualStopwatch::default());
        (Breaker::new(parts, Arc::<ManualStopwatch>::clone(&stopwatch), Arc::new(SystemEntropy)), stopwatch)
    }

    fn hash(part: u8) -> KeyHash {
        KeyHash::from_bytes([part; KeyHash::BYTES])
    }

    fn fail(breaker: &Breaker, part: u8, kind: ErrorKind) {
        let down: Result<()> = Err(kind.into());
        breaker.check(&hash(part)).unwrap().ended(&down);
    }

    #[test]
    fn it_opens_after_failures_and_closes_after_a_probe() {
        let (breaker, stopwatch) = breaker(1);
        for _ in 1..FAILURES {
            fail(&breaker, 0, ErrorKind::Timeout);
        }
        // A load that is dropped counts as a failure.
        drop(breaker.check(&hash(0)).unwrap());
        assert_eq!(breaker.check(&hash(0)).unwrap_err().kind(), ErrorKind::Unavailable);
        stopwatch.advance(FIRST_PAUSE * 2);
        let probe = breaker.check(&hash(0)).unwrap();
        breaker.check(&hash(0)).unwrap_err();
        probe.ended(&Ok(()));
        assert!(!breaker.is_open());
    }

    #[test]
    fn pauses_grow_while_probes_fail_and_a_lost_probe_is_followed_by_another() {
        let (breaker, stopwatch) = breaker(1);
        for _ in 0..FAILURES + 10 {
            breaker.report(0, true);
        }
        stopwatch.advance(LONGEST_PAUSE / 4);
        breaker.check(&hash(0)).unwrap_err();
        stopwatch.advance(LONGEST_PAUSE * 2);
        let lost = breaker.check(&hash(0)).unwrap();
        stopwatch.advance(PROBE_TIME);
        breaker.check(&hash(0)).unwrap().ended(&Ok(()));
        drop(lost);
    }

    #[test]
    fn one_part_is_no_reason_to_refuse_another() {
        let (breaker, _) = breaker(2);
        for _ in 0..FAILURES {
            fail(&breaker, 1, ErrorKind::Unavailable);
        }
        breaker.check(&hash(1)).unwrap_err();
        breaker.check(&hash(0)).unwrap().ended(&Ok(()));
        breaker.poll_answered(&[1]);
        breaker.check(&hash(1)).unwrap_err();
        breaker.poll_answered(&[]);
        breaker.check(&hash(1)).unwrap().ended(&Ok(()));
    }

    #[test]
    fn answers_that_are_errors_of_one_record_are_no_outage() {
        let (breaker, _) = breaker(1);
        for _ in 0..2 * FAILURES {
            fail(&breaker, 0, ErrorKind::Corrupt);
        }
        assert!(!breaker.is_open());
    }
}
