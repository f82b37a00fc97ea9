//! Lists keys, by page and as a stream.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};

use super::{KeyStoreService, Result};
use crate::domain::{KeyFilter, OwnerId};
use crate::repository::pages::{self, Stride};
use crate::repository::{ListedKey, PageRequest};
use crate::service::{KeyRecord, ListRequest, ListedPage, ListedRecord, ServiceError};

/// Maximum number of keys that one page looks at although the filter excludes them.
const MAX_HIDDEN: usize = 1_000;
/// Approximate number of bytes that a listing reads per step.
const LIST_STEP_BYTES: usize = 128 * 1024;

impl KeyStoreService {
    /// Reads a page of keys, newest first, of at most `request.limit` keys and about `max_bytes`. It looks at
    /// a bounded number of keys, so a page can have fewer keys, or none, although more follow.
    ///
    /// # Errors
    /// Returns [`ErrorKind::NotOffered`] if the backend can't list the requested keys, or another error if it
    /// failed.
    pub async fn list(&self, request: &ListRequest, max_bytes: usize) -> Result<ListedPage> {
        let mut stride = Stride::new(LIST_STEP_BYTES);
        let mut step = PageRequest { owner_id: request.owner_id.clone(), after: request.after, limit: 0 };
        // One more than requested shows whether more keys follow.
        let wanted = request.limit + 1;
        let (mut listed, mut bytes, mut looked_at, mut is_over) = (Vec::new(), 0, 0, false);
        while !is_over && listed.len() < wanted && bytes < max_bytes && looked_at < wanted + MAX_HIDDEN {
            // Without a filter, every key that is read counts, so only the missing ones are read.
            let missing = wanted - listed.len();
            step.limit = if request.filter.is_all() { stride.rows().min(missing) } else { stride.rows() };
            let mut page = self.repository.list_page(&step).await?;
            let found = page.len();
            stride.fit(&mut page);
            looked_at += page.len();
            is_over = found < step.limit && page.len() == found;
            step.after = page.last().map(ListedKey::position).or(step.after);
            page.retain(|listed| pages::is_shown(&request.filter, listed));
            bytes += page.iter().map(pages::size).sum::<usize>();
            listed.extend(page);
        }
        let next = if listed.len() >= wanted {
            listed.truncate(request.limit);
            listed.last().map(ListedKey::position)
        } else {
            step.after.filter(|_| !is_over)
        };
        Ok(ListedPage { records: self.listed_records(listed).await?, next })
    }

    /// Streams the keys of one owner or of all, newest first.
    #[must_use]
    pub fn stream(
        &self,
        owner_id: Option<OwnerId>,
        filter: KeyFilter,
    ) -> BoxStream<'static, Result<ListedRecord>> {
        let keys = match owner_id {
            Some(owner) => self.repository.list_by_owner(&owner, &filter),
            None => pages::stream_pages(Arc::clone(&self.repository), None, filter),
        };
        let chunks = stream::unfold((self.clone(), keys), |(service, mut keys)| async {
            let chunk = pages::next_chunk(&mut keys).await;
            if chunk.is_empty() {
                return None;
            }
            Some((stream::iter(service.records_of_chunk(chunk).await), (service, keys)))
        });
        chunks.flatten().boxed()
    }

    async fn listed_records(&self, listed: Vec<ListedKey>) -> Result<Vec<ListedRecord>> {
        let ids: Vec<_> = listed.iter().map(|it| it.position().id).collect();
        let usage = self.last_uses(&ids).await?;
        let as_of = self.clock.now();
        let record =
            |(listed, last_used_at): (ListedKey, _)| listed.map(|key| KeyRecord { key, last_used_at, as_of });
        Ok(listed.into_iter().zip(usage).map(record).collect())
    }

    async fn records_of_chunk(
        &self,
        chunk: Vec<crate::repository::Result<ListedKey>>,
    ) -> Vec<Result<ListedRecord>> {
        let mut keys = Vec::with_capacity(chunk.len());
        let mut failure = None;
        for key in chunk {
            match key {
                Ok(key) => keys.push(key),
                Err(error) => failure = Some(ServiceError::from(error)),
            }
        }
        match self.listed_records(keys).await {
            Ok(records) => records.into_iter().map(Ok).chain(failure.map(Err)).collect(),
            Err(error) => vec![Err(error)],
        }
    }
}
