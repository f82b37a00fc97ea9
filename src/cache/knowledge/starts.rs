//! The state at the beginning of a load, a poll or a change, with which its result is compared.

use crate::cache::protocol::Certainty;
use crate::domain::{ChangeId, Moment};

/// The state that a load notes before it reads anything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoadStart {
    /// The larger of the cursor and the minimum of the key.
    pub(super) cursor: ChangeId,
    /// The epoch in which the load began.
    pub(in crate::cache) epoch: u64,
    /// The moment at which the load began.
    pub(in crate::cache) began: Moment,
}

/// The state when a poll was sent, which its result is compared with.
#[derive(Clone, Debug)]
pub(in crate::cache) struct PollStart {
    /// The moment at which the poll was sent.
    pub(in crate::cache) at: Moment,
    /// The largest change seen in each partition when the poll was sent.
    pub(super) largest_seen: Vec<ChangeId>,
}

/// The state when this replica began a change, which the change is compared with after it was made.
#[derive(Clone, Debug)]
pub(crate) struct ChangeStart {
    /// The moment at which the change began.
    pub(in crate::cache) at: Moment,
    /// The epoch in which the change began.
    pub(in crate::cache) epoch: u64,
    /// The largest change seen in each partition.
    pub(super) largest_seen: Vec<ChangeId>,
}

/// The classification of a change that this replica made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnChange {
    /// The change belongs to the current epoch. Contains the applied revision of a record that reflects it.
    Current(ChangeId, Certainty),
    /// The change belongs to another epoch. The feed reports it once that epoch is followed.
    OtherEpoch,
}
