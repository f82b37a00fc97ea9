//! Concurrent deletions of the items of a stream.

use std::future::ready;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{Stream, StreamExt as _};

/// Maximum number of deletions in flight. One at a time, each would wait for the backend.
const MAX_IN_FLIGHT: usize = 16;

/// Calls `delete` for each of `items`, several at a time. It returns whether it deleted the item. After the first error,
/// of `items` or of a deletion, no further deletion begins, and those in flight complete.
///
/// Returns the number of deleted items, which is exact also after an error, and the first error.
pub(crate) async fn delete_each<T, E, F>(
    items: impl Stream<Item = Result<T, E>>,
    delete: impl Fn(T) -> F,
) -> (u64, Result<(), E>)
where
    F: Future<Output = Result<bool, E>>,
{
    let (has_failed, delete) = (AtomicBool::new(false), &delete);
    let outcomes = items
        .take_while(|_| ready(!has_failed.load(Ordering::Relaxed)))
        .map(|item| async move { delete(item?).await })
        .buffer_unordered(MAX_IN_FLIGHT);
    let mut outcomes = pin!(outcomes);
    let (mut deleted, mut outcome) = (0, Ok(()));
    while let Some(next) = outcomes.next().await {
        match next {
            Ok(is_deleted) => deleted += u64::from(is_deleted),
            Err(error) => {
                has_failed.store(true, Ordering::Relaxed);
                outcome = outcome.and(Err(error));
            }
        }
    }
    (deleted, outcome)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use futures_util::stream;

    use super::*;

    #[tokio::test]
    async fn deletions_are_concurrent_and_counted_until_the_first_error() {
        let (begun, in_flight, most, done) =
            (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let delete = |number: u64| {
            let (begun, in_flight, most, done) = (&begun, &in_flight, &most, &done);
            async move {
                begun.fetch_add(1, Ordering::Relaxed);
                most.fetch_max(in_flight.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                in_flight.fetch_sub(1, Ordering::Relaxed);
                if number == 50 {
                    return Err(number);
                }
                done.fetch_add(1, Ordering::Relaxed);
                // Another process has deleted the even ones first.
                Ok(number % 2 == 1)
            }
        };
        let (deleted, outcome) = delete_each(stream::iter((0..40).map(Ok)), delete).await;
        assert_eq!((deleted, outcome), (20, Ok(())));
        assert_eq!(most.load(Ordering::Relaxed), 16);

        let (deleted, outcome) = delete_each(stream::iter((40..1_000).map(Ok)), delete).await;
        assert_eq!(outcome, Err(50));
        assert_eq!(begun.load(Ordering::Relaxed), done.load(Ordering::Relaxed) + 1, "all of them completed");
        assert!(begun.load(Ordering::Relaxed) <= 40 + 11 + 2 * 16, "{begun:?}");
        assert_eq!(deleted, (done.load(Ordering::Relaxed) - 40) / 2);

        let items = stream::iter([Ok(1), Err(7), Ok(3)]);
        assert_eq!(delete_each(items, async |_| Ok(true)).await.1, Err(7));
    }
}
