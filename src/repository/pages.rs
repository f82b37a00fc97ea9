//! Streams that are made of pages: nothing is held open between two of them, so a reader may take its time.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{KeyRepository, KeyStream, PageRequest, RepositoryError};
use crate::domain::{KeyFilter, OwnerId};

/// How many keys a page of a stream has.
const STREAM_PAGE: usize = 500;

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
    let first = PageRequest { owner_id, filter, after: None, limit: STREAM_PAGE };
    stream::try_unfold((repository, Some(first)), |(repository, request)| async move {
        let Some(mut request) = request else {
            return Ok::<_, RepositoryError>(None);
        };
        let page = repository.list_page(&request).await?;
        let next = match page.last() {
            Some(last) if page.len() == request.limit => {
                request.after = Some(last.position());
                Some(request)
            }
            _ => None,
        };
        Ok(Some((stream::iter(page.into_iter().map(Ok)), (repository, next))))
    })
    .try_flatten()
    .boxed()
}
