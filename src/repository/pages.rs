//! Streams that are made of pages: nothing is held open between two of them, so a reader may take its time.

use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{KeyRepository, KeyStream, ListedKey, PageRequest, RepositoryError, Result};
use crate::domain::{KeyFilter, OwnerId};

/// Approximate number of bytes of keys that a stream keeps for its reader.
const STREAM_BYTES: usize = 32 * 1024;
/// Maximum number of keys that are read at once. They may all be as large as keys can be: 90 KiB.
const MAX_ROWS: usize = 128;
/// Number of keys that are read first, before their size is known.
const FIRST_ROWS: usize = 16;

/// Reads keys in steps that adapt to their size. The largest keys take about 300 times as much memory as typical ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stride {
    bytes: usize,
    rows: usize,
}

impl Stride {
    /// Aims at steps of `bytes`.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { bytes, rows: FIRST_ROWS }
    }

    /// Returns the number of keys to read next.
    pub(crate) fn rows(self) -> usize {
        self.rows
    }

    /// Adapts to the keys that were read, and removes those beyond the aim, so that they are read again when they are needed.
    /// Keeps at least one key. Returns the approximate size in bytes of the others.
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
        // Grows by a factor of four at most, since the next keys may be larger.
        self.rows = (self.bytes / average).clamp(1, MAX_ROWS.min(4 * self.rows));
        bytes
    }
}

/// Returns the approximate size in bytes of a key in memory.
pub(crate) fn size(listed: &ListedKey) -> usize {
    match listed {
        ListedKey::Read(key) => key.size(),
        ListedKey::Unreadable(_) => 0,
    }
}

/// Streams the keys of `owner` that `filter` shows.
pub(super) fn stream_by_owner(
    repository: impl KeyRepository + 'static,
    owner: &OwnerId,
    filter: &KeyFilter,
) -> KeyStream {
    stream_pages(Arc::new(repository), Some(owner.clone()), filter.clone())
}

/// Streams the keys of one owner or of all that `filter` shows, by [`KeyRepository::list_page`]. Each step reads a bounded number of
/// keys, however few of them the filter shows.
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

/// Returns whether `filter` shows an item. Records that can't be read are shown: it isn't known what the filter would say of them.
pub(crate) fn is_shown(filter: &KeyFilter, listed: &ListedKey) -> bool {
    match listed {
        ListedKey::Read(key) => filter.matches(key),
        ListedKey::Unreadable(_) => true,
    }
}

/// Waits for keys until they have about [`STREAM_BYTES`], or until the stream ends or fails. Returns an empty chunk at the end.
pub(crate) async fn next_chunk(keys: &mut KeyStream) -> Vec<Result<ListedKey>> {
    let (mut chunk, mut bytes) = (Vec::new(), 0);
    while bytes < STREAM_BYTES
        && let Some(key) = keys.next().await
    {
        // An error ends the stream.
        bytes += key.as_ref().map_or(STREAM_BYTES, size);
        chunk.push(key);
    }
    chunk
}
