//! An outage of the store is told quickly: after a few failures nobody waits for it any more, but for a probe now and then.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::domain::{Entropy, Moment, Stopwatch};
use crate::repository::{ErrorKind, RepositoryError, Result};

/// So many failures one after the other open it.
const FAILURES: u32 = 5;
/// How long it stays open before the first probe; twice as long after each that fails.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// And at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A probe that has no answer by then may be followed by another.
const PROBE_TIME: Duration = Duration::from_secs(5);

/// Lets loads through while the store answers. When it does not, one at a time may try, after pauses of random length, so
/// that replicas do not return to a store that comes back all at once.
#[derive(Debug)]
pub struct Breaker {
    state: Mutex<State>,
    stopwatch: Arc<dyn Stopwatch>,
    entropy: Arc<dyn Entropy>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed { failures: u32 },
    Open { until: Moment, pause: Duration },
}

impl Breaker {
    /// A closed one: all may pass.
    pub fn new(stopwatch: Arc<dyn Stopwatch>, entropy: Arc<dyn Entropy>) -> Self {
        Self { state: Mutex::new(State::Closed { failures: 0 }), stopwatch, entropy }
    }

    /// Whether a load may begin. Who may, [reports](Self::report) how it ended.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`]: the store did not answer lately.
    pub fn check(&self) -> Result<()> {
        let mut state = self.lock();
        let State::Open { until, pause } = *state else {
            return Ok(());
        };
        let now = self.stopwatch.moment();
        if now < until {
            return Err(RepositoryError::new(ErrorKind::Unavailable, "the store did not answer lately"));
        }
        // This one is the probe; the others go on being refused.
        *state = State::Open { until: now.after(PROBE_TIME), pause };
        Ok(())
    }

    /// Whether loads are refused at this moment.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(*self.lock(), State::Open { .. })
    }

    /// How something that was asked of the store ended.
    pub fn report<T>(&self, outcome: &Result<T>) {
        let is_outage = outcome
            .as_ref()
            .is_err_and(|error| matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout));
        let mut state = self.lock();
        *state = match *state {
            _ if !is_outage => State::Closed { failures: 0 },
            State::Closed { failures } if failures + 1 < FAILURES => State::Closed { failures: failures + 1 },
            State::Closed { .. } => self.open(FIRST_PAUSE),
            State::Open { pause, .. } => self.open((pause * 2).min(LONGEST_PAUSE)),
        };
    }

    /// Open for half to one and a half times `pause`.
    fn open(&self, pause: Duration) -> State {
        let mut random = [0];
        // Without random bytes replicas probe at the same time, which is no reason to fail.
        let _ = self.entropy.fill(&mut random);
        let length = pause / 2 + pause * u32::from(random[0]) / 255;
        State::Open { until: self.stopwatch.moment().after(length), pause }
    }

    // A poisoned lock is taken over: no change of the state can panic half-way.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ManualStopwatch, SystemEntropy};

    fn down() -> Result<()> {
        Err(ErrorKind::Unavailable.into())
    }

    #[test]
    fn it_opens_after_failures_and_closes_after_a_probe() {
        let stopwatch = Arc::new(ManualStopwatch::default());
        let breaker = Breaker::new(Arc::<ManualStopwatch>::clone(&stopwatch), Arc::new(SystemEntropy));
        for _ in 1..FAILURES {
            breaker.report(&down());
        }
        breaker.check().unwrap();
        breaker.report(&down());
        assert_eq!(breaker.check().unwrap_err().kind(), ErrorKind::Unavailable);
        stopwatch.advance(FIRST_PAUSE * 2);
        breaker.check().unwrap();
        breaker.check().unwrap_err();
        breaker.report(&Ok(()));
        breaker.check().unwrap();
        breaker.check().unwrap();
    }

    #[test]
    fn pauses_grow_while_probes_fail_and_a_lost_probe_is_followed_by_another() {
        let stopwatch = Arc::new(ManualStopwatch::default());
        let breaker = Breaker::new(Arc::<ManualStopwatch>::clone(&stopwatch), Arc::new(SystemEntropy));
        for _ in 0..FAILURES + 10 {
            breaker.report(&down());
        }
        stopwatch.advance(LONGEST_PAUSE / 4);
        breaker.check().unwrap_err();
        stopwatch.advance(LONGEST_PAUSE * 2);
        breaker.check().unwrap();
        stopwatch.advance(PROBE_TIME);
        breaker.check().unwrap();
    }

    #[test]
    fn answers_that_are_errors_of_one_record_are_no_outage() {
        let breaker = Breaker::new(Arc::new(ManualStopwatch::default()), Arc::new(SystemEntropy));
        for _ in 0..2 * FAILURES {
            breaker.report::<()>(&Err(ErrorKind::Corrupt.into()));
        }
        breaker.check().unwrap();
    }
}
