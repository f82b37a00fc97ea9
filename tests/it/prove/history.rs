//! The known changes of a key, and the answers that they allow.

use std::time::{Duration, Instant};

use keyvouch::grpc::pb::Reason;

use super::BOUND;

/// A change that was acknowledged.
#[derive(Clone, Copy, Debug)]
struct Answered {
    replica: usize,
    at: Instant,
}

/// The changes of one key. Changes with an unknown outcome may have been applied at any time after their
/// start.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    created: Vec<Answered>,
    /// Start of the first revocation or deletion.
    end_begun: Option<Instant>,
    delete_begun: Option<Instant>,
    ended: Vec<Answered>,
    /// Updates that were acknowledged, with their revisions.
    updated: Vec<(Answered, i64)>,
}

/// The answer to a validation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) replica: usize,
    pub(super) asked_at: Instant,
    pub(super) answered_at: Instant,
    pub(super) reason: Reason,
    /// Revision of the record that was judged, if it was allowed.
    pub(super) revision: i64,
}

impl History {
    pub(super) fn created(&mut self, replica: usize, at: Instant) {
        self.created.push(Answered { replica, at });
    }

    pub(super) fn begin_revoke(&mut self, at: Instant) {
        self.end_begun.get_or_insert(at);
    }

    pub(super) fn begin_delete(&mut self, at: Instant) {
        self.end_begun.get_or_insert(at);
        self.delete_begun.get_or_insert(at);
    }

    pub(super) fn ended(&mut self, replica: usize, at: Instant) {
        self.ended.push(Answered { replica, at });
    }

    pub(super) fn updated(&mut self, replica: usize, at: Instant, revision: i64) {
        self.updated.push((Answered { replica, at }, revision));
    }

    /// Returns whether the replica of `answer` had to reflect the change: at once if it acknowledged the
    /// change, and otherwise within the bound.
    fn is_known(change: Answered, answer: &Answer) -> bool {
        let grace = if change.replica == answer.replica { Duration::ZERO } else { BOUND };
        answer.asked_at >= change.at + grace
    }

    /// Returns the reason why `answer` breaks a guarantee, if it does.
    pub(super) fn violation(&self, answer: &Answer) -> Option<String> {
        let told = |what: &str| Some(format!("{what}: {answer:?} with {self:?}"));
        let may_have_begun = |begun: Option<Instant>| begun.is_some_and(|begun| begun <= answer.answered_at);
        match answer.reason {
            Reason::Valid => {
                if self.ended.iter().any(|&ended| Self::is_known(ended, answer)) {
                    return told("allowed after it was revoked or deleted");
                }
                let known = self.updated.iter().filter(|(updated, _)| Self::is_known(*updated, answer));
                if known.map(|(_, revision)| *revision).max().is_some_and(|known| answer.revision < known) {
                    return told("an older record than was known");
                }
                None
            }
            Reason::NotFound => {
                let was_made = self.created.iter().any(|&created| Self::is_known(created, answer));
                if was_made && !may_have_begun(self.delete_begun) {
                    return told("denied as unknown although it is there");
                }
                None
            }
            Reason::Revoked if may_have_begun(self.end_begun) => None,
            _ => told("an answer that nothing explains"),
        }
    }
}

/// Tests the checker itself: the violations that it has to find, and the answers that it has to accept.
pub(super) fn tests_of_the_judge() {
    #[expect(clippy::disallowed_methods, reason = "instants of a history that never was")]
    let start = Instant::now();
    let at = |millis| start + Duration::from_millis(millis);
    let bound = u64::try_from(BOUND.as_millis()).unwrap();
    let mut history = History::default();
    history.created(0, at(10));
    history.updated(0, at(15), 7);
    history.begin_revoke(at(20));
    history.ended(0, at(30));
    let answer = |replica, asked, reason, revision| Answer {
        replica,
        asked_at: at(asked),
        answered_at: at(asked + 1),
        reason,
        revision,
    };
    for (is_violation, answer) in [
        (false, answer(0, 29, Reason::Valid, 7)),
        (true, answer(0, 30, Reason::Valid, 7)),
        (true, answer(0, 16, Reason::Valid, 6)),
        (false, answer(1, 16, Reason::Valid, 6)),
        (false, answer(1, 29 + bound, Reason::Valid, 7)),
        (true, answer(1, 30 + bound, Reason::Valid, 7)),
        (false, answer(1, 20, Reason::Revoked, 0)),
        (true, answer(1, 15, Reason::Revoked, 0)),
        (false, answer(1, 9 + bound, Reason::NotFound, 0)),
        (true, answer(1, 10 + bound, Reason::NotFound, 0)),
        (true, answer(0, 10, Reason::NotFound, 0)),
        (true, answer(0, 10, Reason::Malformed, 0)),
        (true, answer(0, 10, Reason::Expired, 0)),
    ] {
        assert_eq!(history.violation(&answer).is_some(), is_violation, "{answer:?}");
    }
    history.begin_delete(at(5_000));
    assert!(history.violation(&answer(1, 5_000, Reason::NotFound, 0)).is_none());
}
