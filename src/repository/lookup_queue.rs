//! Look-ups that wait for the store at the same time are handed to it together.
//!
//! A store's round trip costs more than a row, so under load many look-ups share one. None is held back for company: as
//! long as fewer than [`MAX_BATCHES`] are under way, a look-up goes at once, alone if need be.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{ErrorKind, KeyRepository, RepositoryError, Result};
use crate::domain::{ApiKey, KeyHash};

/// How many batches are under way at most. One that hangs gives its place back when its look-ups have timed out.
const MAX_BATCHES: usize = 4;
/// How many look-ups are handed over together at most.
const MAX_BATCH: usize = 64;
/// How many look-ups wait at most: more than a store answers in the time that callers wait.
const MAX_WAITING: usize = 16_384;

struct Lookup {
    hash: KeyHash,
    answer: oneshot::Sender<Result<Option<ApiKey>>>,
}

/// The way of look-ups to a store that lives on another runtime. Ends when all clones are dropped.
#[derive(Clone)]
pub(super) struct LookupQueue {
    waiting: mpsc::Sender<Lookup>,
    timeout: Duration,
}

impl LookupQueue {
    /// Asks `repository` on the runtime of `handle`. A look-up that has no answer after `timeout` fails.
    pub(super) fn new<R: KeyRepository + 'static>(
        repository: Arc<R>,
        handle: &Handle,
        timeout: Duration,
    ) -> Self {
        let (waiting, arrivals) = mpsc::channel(MAX_WAITING);
        handle.spawn(hand_over(repository, arrivals, timeout));
        Self { waiting, timeout }
    }

    /// What [`KeyRepository::get_by_hash`] of the store says.
    pub(super) async fn get(&self, hash: &KeyHash) -> Result<Option<ApiKey>> {
        let (answer, answered) = oneshot::channel();
        self.waiting.try_send(Lookup { hash: *hash, answer }).map_err(|refused| {
            let problem = match refused {
                mpsc::error::TrySendError::Full(_) => "too many look-ups wait for the store",
                mpsc::error::TrySendError::Closed(_) => "the store's runtime has ended",
            };
            RepositoryError::new(ErrorKind::Unavailable, problem)
        })?;
        match tokio::time::timeout(self.timeout, answered).await {
            Ok(Ok(answer)) => answer,
            // The panic itself is in the log.
            Ok(Err(_)) => {
                Err(RepositoryError::new(ErrorKind::Internal, "the look-up did not come to its end"))
            }
            Err(elapsed) => Err(RepositoryError::new(ErrorKind::Timeout, elapsed)),
        }
    }
}

impl fmt::Debug for LookupQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LookupQueue").finish_non_exhaustive()
    }
}

async fn hand_over<R: KeyRepository + 'static>(
    repository: Arc<R>,
    mut arrivals: mpsc::Receiver<Lookup>,
    timeout: Duration,
) {
    let free = Arc::new(Semaphore::new(MAX_BATCHES));
    // First a free place, then whatever has arrived by then. The semaphore is never closed.
    while let Ok(place) = Arc::clone(&free).acquire_owned().await {
        let mut batch = Vec::new();
        if arrivals.recv_many(&mut batch, MAX_BATCH).await == 0 {
            return;
        }
        let repository = Arc::clone(&repository);
        // A task of its own: a panic ends no other look-up than these.
        tokio::spawn(async move {
            batch.retain(|lookup| !lookup.answer.is_closed());
            let hashes: Vec<_> = batch.iter().map(|lookup| lookup.hash).collect();
            let found = tokio::time::timeout(timeout, find(repository.as_ref(), &hashes)).await;
            // Most have given up by themselves by then; whoever still waits is told the same.
            let found = found.unwrap_or_else(|elapsed| {
                of_all(&hashes, &RepositoryError::new(ErrorKind::Timeout, elapsed))
            });
            send(batch, found);
            drop(place);
        });
    }
}

async fn find(repository: &impl KeyRepository, hashes: &[KeyHash]) -> Vec<Result<Option<ApiKey>>> {
    if let [hash] = hashes {
        return vec![repository.get_by_hash(hash).await];
    }
    let found = repository.get_many_by_hash(hashes).await;
    found.unwrap_or_else(|error| of_all(hashes, &error))
}

fn of_all(hashes: &[KeyHash], error: &RepositoryError) -> Vec<Result<Option<ApiKey>>> {
    hashes.iter().map(|_| Err(error.clone())).collect()
}

fn send(batch: Vec<Lookup>, answers: impl IntoIterator<Item = Result<Option<ApiKey>>>) {
    for (lookup, answer) in batch.into_iter().zip(answers) {
        // Who asked may have gone away.
        let _ = lookup.answer.send(answer);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use tokio::sync::Notify;

    use super::*;
    use crate::domain::{ChangeContext, KeyFilter, KeyId, OwnerId, Revision, sample_key};
    use crate::repository::KeyStream;

    /// Longer than the test takes.
    const NEVER: Duration = Duration::from_mins(10);

    /// Knows one key, answers when it is let, and counts how often it is asked.
    #[derive(Debug, Default)]
    struct Slow {
        let_go: Notify,
        calls: AtomicUsize,
    }

    impl fmt::Display for Slow {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Slow")
        }
    }

    impl Slow {
        fn ask(hash: &KeyHash) -> Result<Option<ApiKey>> {
            assert_ne!(*hash, KeyHash::of("panic"), "told to");
            if *hash == KeyHash::of("corrupt") {
                return Err(ErrorKind::Corrupt.into());
            }
            let key = sample_key();
            Ok((key.hash == *hash).then_some(key))
        }
    }

    #[async_trait]
    impl KeyRepository for Slow {
        async fn get_by_hash(&self, hash: &KeyHash) -> Result<Option<ApiKey>> {
            self.calls.fetch_add(1, Ordering::SeqCst);
            self.let_go.notified().await;
            Self::ask(hash)
        }

        async fn get_many_by_hash(&self, hashes: &[KeyHash]) -> Result<Vec<Result<Option<ApiKey>>>> {
            self.calls.fetch_add(1, Ordering::SeqCst);
            let mut found = Vec::new();
            for hash in hashes {
                found.push(Self::ask(hash));
            }
            Ok(found)
        }

        async fn get(&self, _: KeyId) -> Result<Option<ApiKey>> {
            Ok(None)
        }

        async fn create(&self, key: ApiKey, _: &ChangeContext) -> Result<ApiKey> {
            Ok(key)
        }

        async fn update(&self, key: ApiKey, _: Revision, _: &ChangeContext) -> Result<ApiKey> {
            Ok(key)
        }

        async fn delete(&self, _: KeyId, _: &ChangeContext) -> Result<Revision> {
            Ok(Revision::NONE)
        }

        fn list_by_owner(&self, _: &OwnerId, _: &KeyFilter) -> KeyStream {
            Box::pin(futures_util::stream::empty())
        }
    }

    async fn until_asked(slow: &Slow, times: usize) {
        while slow.calls.load(Ordering::SeqCst) < times {
            tokio::task::yield_now().await;
        }
    }

    fn ask(queue: &LookupQueue, secret: &str) -> tokio::task::JoinHandle<Result<Option<ApiKey>>> {
        let (queue, hash) = (queue.clone(), KeyHash::of(secret));
        tokio::spawn(async move { queue.get(&hash).await })
    }

    #[tokio::test]
    async fn what_waits_goes_together_and_each_gets_its_own_answer() {
        let slow = Arc::new(Slow::default());
        let queue = LookupQueue::new(Arc::clone(&slow), &Handle::current(), NEVER);
        // Each goes alone, since nothing else is under way, until all places are taken.
        let mut alone = Vec::new();
        for calls in 1..=MAX_BATCHES {
            alone.push(ask(&queue, "unknown"));
            until_asked(&slow, calls).await;
        }
        let waiting: Vec<_> = ["secret", "corrupt", "unknown", "secret"]
            .map(|secret| ask(&queue, secret))
            .into_iter()
            .collect();
        while queue.waiting.capacity() > MAX_WAITING - waiting.len() {
            tokio::task::yield_now().await;
        }
        slow.let_go.notify_one();
        let mut answers = Vec::new();
        for answer in waiting {
            answers.push(answer.await.unwrap().map_err(|error| error.kind()));
        }
        let found = |answer: &std::result::Result<Option<ApiKey>, ErrorKind>| {
            answer.as_ref().map(|key| key.as_ref().map(|key| key.hash)).map_err(|&kind| kind)
        };
        assert_eq!(found(&answers[0]), Ok(Some(KeyHash::of("secret"))));
        assert_eq!(found(&answers[1]), Err(ErrorKind::Corrupt), "it fails alone");
        assert_eq!(found(&answers[2]), Ok(None));
        assert_eq!(found(&answers[3]), Ok(Some(KeyHash::of("secret"))));
        assert_eq!(slow.calls.load(Ordering::SeqCst), MAX_BATCHES + 1, "the four were one call");
        for _ in alone.iter().skip(1) {
            slow.let_go.notify_one();
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_queue_goes_on() {
        let slow = Arc::new(Slow::default());
        let queue = LookupQueue::new(Arc::clone(&slow), &Handle::current(), NEVER);
        for round in 1..=2 * MAX_BATCHES {
            let panicking = ask(&queue, "panic");
            until_asked(&slow, round).await;
            slow.let_go.notify_one();
            assert_eq!(panicking.await.unwrap().unwrap_err().kind(), ErrorKind::Internal);
        }
    }

    #[tokio::test]
    async fn a_look_up_that_gets_no_answer_times_out() {
        let slow = Arc::new(Slow::default());
        let queue = LookupQueue::new(Arc::clone(&slow), &Handle::current(), Duration::from_millis(10));
        // More than there are places: each gives its own back.
        for _ in 0..=MAX_BATCHES {
            let error = queue.get(&KeyHash::of("secret")).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Timeout);
        }
        let answered = ask(&queue, "unknown");
        until_asked(&slow, MAX_BATCHES + 2).await;
        slow.let_go.notify_waiters();
        assert_eq!(answered.await.unwrap().unwrap(), None);
    }
}
