//! Streams made of pages. No resources are held between two pages, so slow readers block nothing.

use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{KeyRepository, KeyStream, ListedKey, PageRequest, RepositoryError, Result};
use crate::domain::{KeyFilter, OwnerId};

/// Approximate number of bytes of keys that a stream buffers for its reader.
const STREAM_BYTES: usize = 32 * 1024;
/// Maximum number of keys per read. Each may have the maximum size of a key, which is 90 KiB.
const MAX_ROWS: usize = 128;
/// Number of keys in the first read, when their size is unknown.
const FIRST_ROWS: usize = 16;

/// Adapts the number of keys per read to their size. The largest keys take about 300 times as much memory as
/// typical ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stride {
    bytes: usize,
    rows: usize,
}

impl Stride {
    /// Returns a stride whose target is `bytes` per read.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { bytes, rows: FIRST_ROWS }
    }

    /// Returns the number of keys to read next.
    pub(crate) fn rows(self) -> usize {
        self.rows
    }

    /// Adapts to the keys that were read, and removes the keys beyond the target, which are read again when
    /// they are needed. Keeps at least one key. Returns the approximate size of the remaining keys in bytes.
    pub(crate) fn fit(&mut self, keys: &mut Vec<ListedKey>) -> usize {
        let mut bytes = 0;
        let fitting = keys.iter().take_while(|key| {
            let is_fitting = bytes == 0 || bytes + size(key) <= self.bytes;
            bytes += if is_fitting { size(key) } else { 0 };
            is_fitting
        });
        let fitting = fitting.count();
        keys.truncate(fitting);
        let average = (bytes / fitting.max(1)).max(1);
        // Grow by a factor of four at most, since the next keys may be larger.
        self.rows = (self.bytes / average).clamp(1, MAX_ROWS.min(4 * self.rows));
        bytes
    }
}

/// Returns the approximate size of a key in memory, in bytes. 0 for a record that can't be read.
pub(crate) fn size(listed: &ListedKey) -> usize {
    match listed {
        ListedKey::Read(key) => key.size(),
        ListedKey::Unreadable(_) => 0,
    }
}

/// Streams the keys of `owner` that `filter` selects.
pub(super) fn stream_by_owner(
    repository: impl KeyRepository + 'static,
    owner: &OwnerId,
    filter: &KeyFilter,
) -> KeyStream {
    stream_pages(Arc::new(repository), Some(owner.clone()), filter.clone())
}

/// Streams the keys that `filter` selects, of one owner or of all, using [`KeyRepository::list_page`]. Each
/// read has a bounded number of keys, even if the filter selects few of them.
pub(crate) fn stream_pages(
    repository: Arc<dyn KeyRepository>,
    owner_id: Option<OwnerId>,
    filter: KeyFilter,
) -> KeyStream {
    let stride = Stride::new(STREAM_BYTES);
    let first = PageRequest { owner_id, after: None, limit: stride.rows() };
    let pages = stream::try_unfold(
        (repository, stride, Some(first)),
        |(repository, mut stride, request)| async move {
            let Some(mut request) = request else {
                return Ok::<_, RepositoryError>(None);
            };
            let mut page = repository.list_page(&request).await?;
            let found = page.len();
            stride.fit(&mut page);
            let next = match page.last() {
                Some(last) if found == request.limit || page.len() < found => {
                    request.after = Some(last.position());
                    request.limit = stride.rows();
                    Some(request)
                }
                _ => None,
            };
            Ok(Some((stream::iter(page.into_iter().map(Ok)), (repository, stride, next))))
        },
    );
    pages.try_flatten().try_filter(move |listed| std::future::ready(is_shown(&filter, listed))).boxed()
}

/// Returns whether a listing with `filter` contains an item. Records that can't be read are always included,
/// because the filter can't be applied to them.
pub(crate) fn is_shown(filter: &KeyFilter, listed: &ListedKey) -> bool {
    match listed {
        ListedKey::Read(key) => filter.matches(key),
        ListedKey::Unreadable(_) => true,
    }
}

/// Collects keys until their size is about [`STREAM_BYTES`], or until the stream ends or fails. Returns an
/// empty chunk at the end.
pub(crate) async fn next_chunk(keys: &mut KeyStream) -> Vec<Result<ListedKey>> {
    let (mut chunk, mut bytes) = (Vec::new(), 0);
    while bytes < STREAM_BYTES
        && let Some(key) = keys.next().await
    {
        // An error is the last item of the stream, so it completes the chunk.
        bytes += key.as_ref().map_or(STREAM_BYTES, size);
        chunk.push(key);
    }
    chunk
}
