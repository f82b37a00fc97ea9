//! Streams that are made of pages: nothing is held open between two of them, so a reader may take its time.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{KeyRepository, KeyStream, ListedKey, PageRequest, RepositoryError};
use crate::domain::{KeyFilter, OwnerId};

/// Approximate number of bytes that a stream reads per page.
const STREAM_BYTES: usize = 128 * 1024;
/// Maximum number of keys per page.
const MAX_ROWS: usize = 500;
/// Number of keys of the first page, before their size is known.
const FIRST_ROWS: usize = 16;

/// Adapts the number of keys per page to their size. The largest keys take about 300 times as much memory as typical ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stride {
    bytes: usize,
    rows: usize,
}

impl Stride {
    /// Aims at pages of `bytes`.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { bytes, rows: FIRST_ROWS }
    }

    /// Returns the number of keys of the next page.
    pub(crate) fn rows(self) -> usize {
        self.rows
    }

    /// Adapts to a page that was read, and returns its approximate size in bytes.
    pub(crate) fn learn(&mut self, page: &[ListedKey]) -> usize {
        let size = |listed: &ListedKey| match listed {
            ListedKey::Read(key) => key.size(),
            ListedKey::Unreadable(_) => 0,
        };
        let bytes: usize = page.iter().map(size).sum();
        let average = (bytes / page.len().max(1)).max(1);
        // Grows by a factor of four at most, since the next keys may be larger.
        self.rows = (self.bytes / average).clamp(1, MAX_ROWS.min(4 * self.rows));
        bytes
    }
}

/// The keys of `owner`.
pub(super) fn stream_by_owner(
    repository: impl KeyRepository + 'static,
    owner: &OwnerId,
    filter: &KeyFilter,
) -> KeyStream {
    stream_pages(repository, Some(owner.clone()), filter.clone())
}

/// The keys of one owner or of all, by [`KeyRepository::list_page`].
pub(crate) fn stream_pages(
    repository: impl KeyRepository + 'static,
    owner_id: Option<OwnerId>,
    filter: KeyFilter,
) -> KeyStream {
    let stride = Stride::new(STREAM_BYTES);
    let first = PageRequest { owner_id, filter, after: None, limit: stride.rows() };
    stream::try_unfold((repository, stride, Some(first)), |(repository, mut stride, request)| async move {
        let Some(mut request) = request else {
            return Ok::<_, RepositoryError>(None);
        };
        let page = repository.list_page(&request).await?;
        stride.learn(&page);
        let next = match page.last() {
            Some(last) if page.len() == request.limit => {
                request.after = Some(last.position());
                request.limit = stride.rows();
                Some(request)
            }
            _ => None,
        };
        Ok(Some((stream::iter(page.into_iter().map(Ok)), (repository, stride, next))))
    })
    .try_flatten()
    .boxed()
}
