//! Marks calls that are answered from the cache of the process, or else rejected.

use http::Extensions;

use crate::service::Lookups;

/// Request extension of a call that found no free slot. Nothing is looked up for such a call, neither the key that it
/// validates nor the key that is its credential. If the cache of the process has no entry that may be served, the call
/// is rejected as overload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheOnly;

impl CacheOnly {
    /// Returns the limit for lookups of the call with these `extensions`: no lookups if the call is marked, and
    /// otherwise `unmarked`.
    pub(super) fn lookups<'l>(extensions: &Extensions, unmarked: Lookups<'l>) -> Lookups<'l> {
        if extensions.get::<Self>().is_some() { Lookups::Rejected } else { unmarked }
    }
}
