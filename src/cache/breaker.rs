//! Fails loads quickly during an outage of the backend. After a few failures, only occasional probes wait for
//! it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::domain::{Entropy, KeyHash, Moment, Stopwatch};
use crate::repository::{ErrorKind, RepositoryError, Result, partition_of};

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
    partitions: Box<[Mutex<State>]>,
    stopwatch: Arc<dyn Stopwatch>,
    entropy: Arc<dyn Entropy>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed {
        failures: u32,
    },
    /// Loads are rejected until this moment. Then the next load is a probe, for which the moment is set again.
    Open {
        until: Moment,
        pause: Duration,
    },
}

/// The outcome of an attempt, or of a poll, in one partition. The largest outcome of its loads counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Failed,
    ProbeFailed,
    Answered,
}

impl Breaker {
    /// Creates a closed breaker, which lets all loads through, for a feed with this number of
    /// partitions.
    pub fn new(partitions: u8, stopwatch: Arc<dyn Stopwatch>, entropy: Arc<dyn Entropy>) -> Self {
        let partitions = (0..partitions.max(1)).map(|_| Mutex::new(State::Closed { failures: 0 })).collect();
        Self { partitions, stopwatch, entropy }
    }

    fn partition_of(&self, hash: &KeyHash) -> usize {
        partition_of(hash.as_bytes()[0], self.partitions.len())
    }

    /// Begins an attempt to load keys with one call of the backend.
    pub(super) fn attempt(&self) -> Attempt<'_> {
        Attempt { breaker: self, partitions: BTreeMap::new() }
    }

    /// Returns whether loads of any partition are rejected at this moment. False once a probe is due.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let now = self.stopwatch.moment();
        let rejects = |state| matches!(state, State::Open { until, .. } if now < until);
        (0..self.partitions.len()).any(|partition| rejects(*self.lock(partition)))
    }

    /// Reports that a poll of the feed was answered by all partitions except those in `unanswered`.
    pub(super) fn poll_answered(&self, unanswered: &[u8]) {
        for (number, partition) in (0..).zip(0..self.partitions.len()) {
            if !unanswered.contains(&number) {
                self.report(partition, Outcome::Answered);
            }
        }
    }

    /// Reports that a poll of the feed failed. If there are several partitions, it is unknown which one
    /// failed, so the report is ignored.
    pub(super) fn poll_failed(&self, error: &RepositoryError) {
        if self.partitions.len() == 1 {
            self.report(0, if is_outage(error) { Outcome::Failed } else { Outcome::Answered });
        }
    }

    fn report(&self, partition: usize, outcome: Outcome) {
        let mut state = self.lock(partition);
        *state = match (*state, outcome) {
            (_, Outcome::Answered) => State::Closed { failures: 0 },
            (State::Closed { failures }, _) if failures + 1 < FAILURES => {
                State::Closed { failures: failures + 1 }
            }
            (State::Closed { .. }, _) => self.open(FIRST_PAUSE),
            (State::Open { pause, .. }, Outcome::ProbeFailed) => self.open((pause * 2).min(LONGEST_PAUSE)),
            // Attempts that began before the breaker opened, and polls, say nothing new about the outage.
            (open @ State::Open { .. }, Outcome::Failed) => open,
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
    fn lock(&self, partition: usize) -> MutexGuard<'_, State> {
        self.partitions[partition].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_outage(error: &RepositoryError) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Unusable | ErrorKind::Timeout)
}

/// An attempt to load keys with one call of the backend. When it is dropped, it is reported once for each of
/// its partitions, however many loads it has: as a failure, unless at least one of the loads was answered.
#[derive(Debug)]
pub(super) struct Attempt<'b> {
    breaker: &'b Breaker,
    /// The outcome in each partition with an admitted load.
    partitions: BTreeMap<usize, Outcome>,
}

impl Attempt<'_> {
    /// Admits a load of `hash`.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] while the breaker is open and no probe is due.
    pub(super) fn admit(&mut self, hash: &KeyHash) -> Result<()> {
        let partition = self.breaker.partition_of(hash);
        let mut state = self.breaker.lock(partition);
        let outcome = match *state {
            State::Closed { .. } => Outcome::Failed,
            State::Open { until, pause } => {
                let now = self.breaker.stopwatch.moment();
                if now < until {
                    let cause = "the backend is unavailable; lookups are paused after repeated failures";
                    return Err(RepositoryError::new(ErrorKind::Unavailable, cause));
                }
                // This load is the probe. Further loads are rejected until it ends.
                *state = State::Open { until: now.after(PROBE_TIME), pause };
                Outcome::ProbeFailed
            }
        };
        drop(state);
        self.partitions.entry(partition).and_modify(|it| *it = (*it).max(outcome)).or_insert(outcome);
        Ok(())
    }

    /// Notes the outcome of an admitted load of `hash`.
    pub(super) fn ended<T>(&mut self, hash: &KeyHash, outcome: &Result<T>) {
        if !outcome.as_ref().is_err_and(is_outage) {
            self.partitions.insert(self.breaker.partition_of(hash), Outcome::Answered);
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        for (&partition, &outcome) in &self.partitions {
            self.breaker.report(partition, outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ManualStopwatch, SystemEntropy};

    fn breaker(partitions: u8) -> (Breaker, Arc<ManualStopwatch>) {
        let stopwatch = Arc::new(ManualStopwatch::default());
        let breaker =
            Breaker::new(partitions, Arc::<ManualStopwatch>::clone(&stopwatch), Arc::new(SystemEntropy));
        (breaker, stopwatch)
    }

    fn hash(partition: u8) -> KeyHash {
        KeyHash::from_bytes([partition; KeyHash::BYTES])
    }

    /// Loads a key, with this outcome.
    fn load(breaker: &Breaker, partition: u8, outcome: Result<()>) -> Result<()> {
        let mut attempt = breaker.attempt();
        attempt.admit(&hash(partition))?;
        attempt.ended(&hash(partition), &outcome);
        Ok(())
    }

    fn fail(breaker: &Breaker, partition: u8, kind: ErrorKind) {
        load(breaker, partition, Err(kind.into())).unwrap();
    }

    #[test]
    fn it_opens_after_failures_and_closes_after_a_probe() {
        let (breaker, stopwatch) = breaker(1);
        for _ in 1..FAILURES {
            fail(&breaker, 0, ErrorKind::Timeout);
        }
        assert!(!breaker.is_open());
        // An attempt that is dropped without outcomes counts as a failure.
        breaker.attempt().admit(&hash(0)).unwrap();
        assert!(breaker.is_open());
        assert_eq!(load(&breaker, 0, Ok(())).unwrap_err().kind(), ErrorKind::Unavailable);
        stopwatch.advance(FIRST_PAUSE * 2);
        assert!(!breaker.is_open(), "a probe is due, so no load is rejected");
        let mut probe = breaker.attempt();
        probe.admit(&hash(0)).unwrap();
        assert!(breaker.is_open(), "other loads are rejected during the probe");
        assert_eq!(probe.admit(&hash(0)).unwrap_err().kind(), ErrorKind::Unavailable);
        load(&breaker, 0, Ok(())).unwrap_err();
        probe.ended(&hash(0), &Ok(()));
        drop(probe);
        assert!(!breaker.is_open());
        load(&breaker, 0, Ok(())).unwrap();
    }

    /// One call of the backend that fails is one failure, whatever the number of its loads.
    #[test]
    fn a_failed_batch_counts_once_per_partition() {
        let (breaker, _) = breaker(2);
        for failures in 1..=FAILURES {
            assert!(!breaker.is_open());
            let mut batch = breaker.attempt();
            for _ in 0..64 {
                batch.admit(&hash(0)).unwrap();
                batch.admit(&hash(1)).unwrap();
            }
            let timeout: Result<()> = Err(ErrorKind::Timeout.into());
            for _ in 0..64 {
                batch.ended(&hash(0), &timeout);
                batch.ended(&hash(1), &timeout);
            }
            if failures % 2 == 0 {
                // One answer shows that the partition is available.
                batch.ended(&hash(1), &Ok(()));
            }
        }
        assert_eq!(*breaker.lock(1), State::Closed { failures: 1 });
        assert!(matches!(*breaker.lock(0), State::Open { pause: FIRST_PAUSE, .. }));
    }

    #[test]
    fn pauses_grow_only_while_probes_fail_and_a_lost_probe_is_followed_by_another() {
        let (breaker, stopwatch) = breaker(1);
        // Batches that are in flight when the breaker opens don't lengthen the first pause.
        let late: Vec<_> = (0..FAILURES + 10).map(|_| breaker.attempt()).collect();
        let late = late.into_iter().map(|mut attempt| {
            attempt.admit(&hash(0)).unwrap();
            attempt
        });
        drop(late.collect::<Vec<_>>());
        assert!(matches!(*breaker.lock(0), State::Open { pause: FIRST_PAUSE, .. }));
        breaker.poll_failed(&ErrorKind::Timeout.into());
        assert!(matches!(*breaker.lock(0), State::Open { pause: FIRST_PAUSE, .. }));
        for _ in 0..10 {
            stopwatch.advance(LONGEST_PAUSE * 2);
            fail(&breaker, 0, ErrorKind::Timeout);
        }
        stopwatch.advance(LONGEST_PAUSE / 4);
        load(&breaker, 0, Ok(())).unwrap_err();
        stopwatch.advance(LONGEST_PAUSE * 2);
        let mut lost = breaker.attempt();
        lost.admit(&hash(0)).unwrap();
        stopwatch.advance(PROBE_TIME);
        load(&breaker, 0, Ok(())).unwrap();
        drop(lost);
    }

    #[test]
    fn loads_of_one_partition_are_not_rejected_because_of_another() {
        let (breaker, _) = breaker(2);
        for _ in 0..FAILURES {
            fail(&breaker, 1, ErrorKind::Unavailable);
        }
        load(&breaker, 1, Ok(())).unwrap_err();
        load(&breaker, 0, Ok(())).unwrap();
        breaker.poll_answered(&[1]);
        load(&breaker, 1, Ok(())).unwrap_err();
        breaker.poll_answered(&[]);
        load(&breaker, 1, Ok(())).unwrap();
    }

    #[test]
    fn errors_of_one_record_are_not_an_outage() {
        let (breaker, _) = breaker(1);
        for _ in 0..2 * FAILURES {
            fail(&breaker, 0, ErrorKind::Corrupt);
        }
        assert!(!breaker.is_open());
    }
}
