//! Streams that are made of pages: nothing is held open between two of them, so a reader may take its time.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{KeyRepository, KeyStream, ListedKey, PageRequest, RepositoryError};
use crate::domain::{KeyFilter, OwnerId};

/// How many bytes of keys a stream reads at once, about.
const STREAM_BYTES: usize = 128 * 1024;
/// The most keys that are read at once.
const MAX_ROWS: usize = 500;
/// How many are read before it is known how large they are.
const FIRST_ROWS: usize = 16;

/// How many keys are read at once, by how large they are: the largest ones have 300 times the size of most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stride {
    bytes: usize,
    rows: usize,
}

impl Stride {
    /// Of about so many bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { bytes, rows: FIRST_ROWS }
    }

    /// How many keys to read next.
    pub(crate) fn rows(self) -> usize {
        self.rows
    }

    /// Takes note of a page that was read; returns how many bytes it has, about.
    pub(crate) fn learn(&mut self, page: &[ListedKey]) -> usize {
        let size = |listed: &ListedKey| match listed {
            ListedKey::Read(key) => key.size(),
            ListedKey::Unreadable(_) => 0,
        };
        let bytes: usize = page.iter().map(size).sum();
        let average = (bytes / page.len().max(1)).max(1);
        // Four times as many at most: the next ones may be larger.
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
