//! The known changes of a key, and the responses that are consistent with them.

use std::time::{Duration, Instant};

use keyvouch::grpc::pb::Reason;

use super::BOUND;

/// A change that was acknowledged.
#[derive(Clone, Copy, Debug)]
struct Acknowledged {
    replica: usize,
    at: Instant,
}

/// The changes of one key. Changes with an unknown outcome may have been applied at any time after their
/// start.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    created: Vec<Acknowledged>,
    /// Start of the first revocation, rotation or deletion.
    end_begun: Option<Instant>,
    delete_begun: Option<Instant>,
    /// Revocations, rotations and deletions that were acknowledged.
    ended: Vec<Acknowledged>,
    /// Updates that were acknowledged, with their revisions.
    updated: Vec<(Acknowledged, i64)>,
}

/// The response to a validation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Response {
    pub(super) replica: usize,
    pub(super) sent_at: Instant,
    pub(super) received_at: Instant,
    pub(super) reason: Reason,
    /// Revision of the record that was judged, if it was allowed.
    pub(super) revision: i64,
}

impl History {
    pub(super) fn created(&mut self, replica: usize, at: Instant) {
        self.created.push(Acknowledged { replica, at });
    }

    pub(super) fn begin_revoke(&mut self, at: Instant) {
        self.end_begun.get_or_insert(at);
    }

    pub(super) fn begin_delete(&mut self, at: Instant) {
        self.end_begun.get_or_insert(at);
        self.delete_begun.get_or_insert(at);
    }

    pub(super) fn ended(&mut self, replica: usize, at: Instant) {
        self.ended.push(Acknowledged { replica, at });
    }

    pub(super) fn updated(&mut self, replica: usize, at: Instant, revision: i64) {
        self.updated.push((Acknowledged { replica, at }, revision));
    }

    /// Returns whether `response` has to reflect the change: at once if its replica acknowledged the change, and
    /// otherwise after the bound.
    fn has_to_reflect(change: Acknowledged, response: &Response) -> bool {
        let grace = if change.replica == response.replica { Duration::ZERO } else { BOUND };
        response.sent_at >= change.at + grace
    }

    /// Returns how `response` violates a guarantee, if it does.
    pub(super) fn violation(&self, response: &Response) -> Option<String> {
        let violation = |what: &str| Some(format!("{what}: {response:?} with {self:?}"));
        let may_have_begun =
            |begun: Option<Instant>| begun.is_some_and(|begun| begun <= response.received_at);
        match response.reason {
            Reason::Valid => {
                if self.ended.iter().any(|&ended| Self::has_to_reflect(ended, response)) {
                    return violation("allowed after it was revoked or deleted");
                }
                let known =
                    self.updated.iter().filter(|(updated, _)| Self::has_to_reflect(*updated, response));
                if known.map(|(_, revision)| *revision).max().is_some_and(|known| response.revision < known) {
                    return violation("judged by an outdated record");
                }
                None
            }
            Reason::NotFound => {
                let was_created = self.created.iter().any(|&created| Self::has_to_reflect(created, response));
                if was_created && !may_have_begun(self.delete_begun) {
                    return violation("denied as not found although it exists");
                }
                None
            }
            Reason::Revoked if may_have_begun(self.end_begun) => None,
            _ => violation("not explained by any change"),
        }
    }
}

/// Tests the checker itself: the violations that it has to find, and the responses that it has to accept.
#[test]
fn violations_are_found_and_consistent_responses_accepted() {
    #[expect(clippy::disallowed_methods, reason = "any instant can be the start of this history")]
    let start = Instant::now();
    let at = |millis| start + Duration::from_millis(millis);
    let bound = u64::try_from(BOUND.as_millis()).unwrap();
    let mut history = History::default();
    history.created(0, at(10));
    history.updated(0, at(15), 7);
    history.begin_revoke(at(20));
    history.ended(0, at(30));
    let response = |replica, sent, reason, revision| Response {
        replica,
        sent_at: at(sent),
        received_at: at(sent + 1),
        reason,
        revision,
    };
    for (is_violation, response) in [
        (false, response(0, 29, Reason::Valid, 7)),
        (true, response(0, 30, Reason::Valid, 7)),
        (true, response(0, 16, Reason::Valid, 6)),
        (false, response(1, 16, Reason::Valid, 6)),
        (false, response(1, 29 + bound, Reason::Valid, 7)),
        (true, response(1, 30 + bound, Reason::Valid, 7)),
        (false, response(1, 20, Reason::Revoked, 0)),
        (true, response(1, 15, Reason::Revoked, 0)),
        (false, response(1, 9 + bound, Reason::NotFound, 0)),
        (true, response(1, 10 + bound, Reason::NotFound, 0)),
        (true, response(0, 10, Reason::NotFound, 0)),
        (true, response(0, 10, Reason::Malformed, 0)),
        (true, response(0, 10, Reason::Expired, 0)),
    ] {
        assert_eq!(history.violation(&response).is_some(), is_violation, "{response:?}");
    }
    history.begin_delete(at(5_000));
    assert!(history.violation(&response(1, 5_000, Reason::NotFound, 0)).is_none());
}
