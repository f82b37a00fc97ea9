//! The steps of polls.

use super::super::Rewound;
use super::steps::Steps;
use super::world::{Awaited, Event, Poll, World};
use super::{Checker, Guard, KEY, OTHER};
use crate::domain::ChangeId;

impl Checker {
    /// Adds the steps of a poll.
    pub(super) fn poll(&self, world: &World, steps: &mut Steps) {
        let Some(poll) = &world.poll else {
            let cursor = world.partition.cursor().revision.get();
            let largest_seen = world.partition.largest_seen();
            let poll = Poll { sent: world.now(), largest_seen, read: None, applied: cursor, is_half: false };
            let mut next = World { poll: Some(poll), ..world.clone() };
            next.poll_progressed(Awaited::Unsent, Awaited::Sent);
            steps.push(("a poll is sent".into(), Ok(next)));
            return;
        };
        let mut next = world.clone();
        let Some(log) = &poll.read else {
            let cursor = world.partition.cursor();
            if world.log.iter().any(|event| event.id == cursor) {
                next.poll = Some(Poll { read: Some(world.log.clone()), ..poll.clone() });
                if !self.has(Guard::AppliedBeforeAdvancing) {
                    self.advance(&mut next, poll, world.head());
                }
                steps.push(("the poll reads".into(), Ok(next)));
            } else {
                next.close();
                steps.push(("the poll does not find its position".into(), Ok(next)));
            }
            return;
        };
        let head = log.last().map_or(ChangeId::NONE, |event| event.id);
        if poll.applied == head.revision.get() {
            self.advance(&mut next, poll, head);
            next.poll = None;
            next.poll_progressed(Awaited::Sent, Awaited::Completed);
            if self.has(Guard::LargestSeenIsCompared) && next.partition.check_end(poll.largest_seen).is_err()
            {
                next.close();
            }
            steps.push(("the poll is completed".into(), Ok(next)));
            return;
        }
        let at = log.iter().position(|event| event.id.revision.get() == poll.applied + 1).unwrap();
        let event = log[at];
        let key = if event.value.is_some() { KEY } else { OTHER };
        if poll.is_half {
            if key == KEY && self.has(Guard::EventEvicts) {
                next.evict();
            }
            next.poll = Some(Poll { applied: event.id.revision.get(), is_half: false, ..poll.clone() });
        } else {
            next.poll = Some(Poll { is_half: true, ..poll.clone() });
            if self.apply(&mut next, log, at, event).is_err() {
                next.close();
            }
        }
        steps.push((format!("the poll applies {:?}", event.id), Ok(next)));
    }

    /// Applies one event (rules 7 and 9).
    pub(super) fn apply(
        &self,
        world: &mut World,
        log: &[Event],
        at: usize,
        event: Event,
    ) -> Result<(), Rewound> {
        if !self.has(Guard::LargestSeenIsCompared) {
            world.partition.largest_seen = event.id;
        }
        world.partition.check_event(event.id)?;
        let key = if event.value.is_some() { KEY } else { OTHER };
        if key == OTHER || self.has(Guard::EventRaises) {
            self.raise(world, key, World::cause_of(log, at), event.id);
        }
        Ok(())
    }

    fn advance(&self, world: &mut World, poll: &Poll, head: ChangeId) {
        world.partition.advance(head);
        world.confirmed = if self.has(Guard::CountsFromSending) { poll.sent } else { world.now() };
    }
}
