//! The lookup of entries.

use std::fmt::{Debug, Display};
use std::time::Duration;

use async_trait::async_trait;

use super::{Entry, Tier};
use crate::domain::{KeyHash, Moment};
use crate::repository::Result;

/// The result of a lookup and its origin.
#[derive(Clone, Debug)]
pub struct Found {
    /// The entry that was found.
    pub entry: Entry,
    /// The origin of the entry.
    pub tier: Tier,
    /// The moment from which the staleness counts: the entry reflects the state of the backend at this moment
    /// or later.
    pub as_of: Moment,
}

/// The maximum staleness of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// The moment of the call.
    pub asked_at: Moment,
    /// Maximum staleness of the answer at that moment. 0 requires a read of the backend.
    pub max_staleness: Duration,
}

impl Demand {
    /// Returns the earliest moment whose state of the backend the answer may reflect.
    #[must_use]
    pub fn oldest(&self) -> Moment {
        self.asked_at.before(self.max_staleness)
    }
}

/// Looks up entries, in a backend or in caches in front of one. `Display` shows the stack.
#[async_trait]
pub trait KeySource: Send + Sync + Debug + Display {
    /// Returns an entry that is available without waiting. It may be served, because it meets the fences and
    /// `demand`. `None` means that [`find`](Self::find) has to be called.
    ///
    /// The default implementation returns `None`.
    fn peek(&self, hash: &KeyHash, demand: &Demand) -> Option<Found> {
        let _ = (hash, demand);
        None
    }

    /// Looks up the entry of `hash`. A hash without a key results in a negative entry. The staleness counts
    /// from the beginning of the call.
    ///
    /// # Errors
    /// The errors of the backend. Failures of caches are never returned.
    async fn find(&self, hash: &KeyHash, demand: &Demand) -> Result<Found>;
}
