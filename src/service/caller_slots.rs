//! Limits concurrent streams in total and per caller.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::{Actor, Caller};
use crate::domain::Moment;

/// The open streams of one kind.
#[derive(Debug)]
pub(crate) struct CallerSlots {
    max: usize,
    max_per_caller: usize,
    unread_for: Option<Duration>,
    taken: Mutex<OpenSlots>,
}

#[derive(Debug, Default)]
struct OpenSlots {
    last: u64,
    slots: BTreeMap<u64, Slot>,
}

impl OpenSlots {
    /// Returns the number of slots of `caller`.
    fn count(&self, caller: &str) -> usize {
        self.slots.values().filter(|slot| slot.caller == caller).count()
    }
}

#[derive(Debug)]
struct Slot {
    caller: String,
    read_at: Moment,
    lost: Arc<Notify>,
}

/// The slot of a stream. Dropping it frees the slot.
#[derive(Debug)]
pub(crate) struct CallerSlot {
    slots: Arc<CallerSlots>,
    number: u64,
    lost: Arc<Notify>,
}

impl CallerSlots {
    /// Creates `max` slots, of which one caller can take `max_per_caller`. A stream that nobody has read for
    /// `unread_for` loses its slot when another stream needs it. If `unread_for` is `None`, streams keep
    /// their slots.
    pub(crate) fn new(max: usize, max_per_caller: usize, unread_for: Option<Duration>) -> Arc<Self> {
        Arc::new(Self { max, max_per_caller, unread_for, taken: Mutex::default() })
    }

    /// Takes a slot for a stream of `caller` that begins at `now`. Returns `None` if a limit is reached.
    pub(crate) fn take(self: &Arc<Self>, caller: &Caller, now: Moment) -> Option<CallerSlot> {
        let Actor(caller) = caller.actor();
        let mut taken = self.lock();
        if !self.has_room(&taken, &caller) {
            let unread_for = self.unread_for?;
            // Streams of other callers make no room for one that has reached its own limit.
            let is_at_own_limit = taken.count(&caller) >= self.max_per_caller;
            taken.slots.retain(|_, slot| {
                let is_kept =
                    now.since(slot.read_at) < unread_for || is_at_own_limit && slot.caller != caller;
                if !is_kept {
                    slot.lost.notify_one();
                }
                is_kept
            });
            if !self.has_room(&taken, &caller) {
                return None;
            }
        }
        taken.last += 1;
        let number = taken.last;
        let lost = Arc::default();
        taken.slots.insert(number, Slot { caller, read_at: now, lost: Arc::clone(&lost) });
        Some(CallerSlot { slots: Arc::clone(self), number, lost })
    }

    fn has_room(&self, taken: &OpenSlots, caller: &str) -> bool {
        taken.slots.len() < self.max && taken.count(caller) < self.max_per_caller
    }

    // Each change of the slots is complete before anything can panic, so they are consistent even after a
    // panic.
    fn lock(&self) -> MutexGuard<'_, OpenSlots> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CallerSlot {
    /// Completes once the stream has lost its slot. Cancellation safe.
    pub(crate) async fn lost(&self) {
        self.lost.notified().await;
    }

    /// Records that the stream was read at `now`. Returns false if it has lost its slot.
    pub(crate) fn record_read(&self, now: Moment) -> bool {
        let mut taken = self.slots.lock();
        taken.slots.get_mut(&self.number).map(|slot| slot.read_at = now).is_some()
    }
}

impl Drop for CallerSlot {
    fn drop(&mut self) {
        self.slots.lock().slots.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNREAD: Duration = Duration::from_secs(15);

    fn caller(name: &str) -> Caller {
        Caller::admin(name.to_owned(), "r")
    }

    #[test]
    fn the_slots_of_one_caller_are_limited() {
        let slots = CallerSlots::new(3, 2, None);
        let take = |caller| slots.take(&self::caller(caller), Moment::START);
        let first = [take("a").unwrap(), take("a").unwrap()];
        assert!(take("a").is_none());
        let _other = take("b").unwrap();
        assert!(take("c").is_none());
        drop(first);
        assert!(take("c").is_some());
        assert_eq!(slots.lock().slots.len(), 1, "dropped slots are removed");
    }

    #[test]
    fn unread_streams_lose_their_slots_to_others() {
        let slots = CallerSlots::new(2, 2, Some(UNREAD));
        let now = Moment::START;
        let [unread, read] = ["a", "b"].map(|caller| slots.take(&self::caller(caller), now).unwrap());
        let later = now.after(UNREAD);
        assert!(read.record_read(later) && unread.record_read(now));
        let _new = slots.take(&caller("c"), later).unwrap();
        assert!(read.record_read(later));
        assert!(!unread.record_read(later));
        assert!(slots.take(&caller("c"), later).is_none(), "all streams are read");
    }

    #[test]
    fn a_caller_at_its_own_limit_replaces_only_its_own_streams() {
        let slots = CallerSlots::new(4, 2, Some(UNREAD));
        let now = Moment::START;
        let [other, _first, second] =
            ["b", "a", "a"].map(|caller| slots.take(&self::caller(caller), now).unwrap());
        let later = now.after(UNREAD);
        assert!(second.record_read(later));
        let _third = slots.take(&caller("a"), later).unwrap();
        assert!(other.record_read(later), "the caller has lost a slot of its own instead");
        assert!(second.record_read(later));
    }
}
