//! Look-ups that wait for the store at the same time are handed to it together.
//!
//! A store's round trip costs more than a row, so under load many look-ups share one. Each thread that serves clients has a
//! line of its own: a batch leaves it and comes back to it as a whole, which wakes two threads once, not for each look-up.
//! None is held back for company: as long as fewer than [`MAX_BATCHES`] of its line are under way, a look-up goes with what
//! else arrived in the same turn of its runtime, alone if need be.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thread_local::ThreadLocal;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::{ErrorKind, KeyRepository, RepositoryError, Result};
use crate::domain::{ApiKey, KeyHash};

/// How many batches of a line are under way at most.
const MAX_BATCHES: usize = 4;
/// How many look-ups are handed over together at most.
const MAX_BATCH: usize = 64;
/// How many look-ups wait in a line at most: more than a store answers in the time that callers wait.
const MAX_WAITING: usize = 16_384;

/// The way of look-ups to a store that lives on another runtime.
pub(super) struct LookupQueue<R> {
    repository: Arc<R>,
    /// Where it lives.
    handle: Handle,
    timeout: Duration,
    lines: ThreadLocal<Arc<Mutex<Line>>>,
}

/// The look-ups of a thread.
#[derive(Default)]
struct Line {
    waiting: Vec<Lookup>,
    /// Batches that are under way, or about to be made up.
    batches: usize,
    /// Whether one is about to be made up: it will take what arrives until then.
    is_called: bool,
}

struct Lookup {
    hash: KeyHash,
    answer: oneshot::Sender<Result<Option<ApiKey>>>,
}

impl<R: KeyRepository + 'static> LookupQueue<R> {
    /// Asks `repository` on the runtime of `handle`. A look-up that has no answer after `timeout` fails.
    pub(super) fn new(repository: Arc<R>, handle: Handle, timeout: Duration) -> Self {
        Self { repository, handle, timeout, lines: ThreadLocal::new() }
    }

    /// What [`KeyRepository::get_by_hash`] of the store says.
    pub(super) async fn get(self: &Arc<Self>, hash: &KeyHash) -> Result<Option<ApiKey>> {
        let answered = self.enqueue(*hash)?;
        match tokio::time::timeout(self.timeout, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => {
                Err(RepositoryError::new(ErrorKind::Internal, "the look-up did not come to its end"))
            }
            Err(elapsed) => Err(RepositoryError::new(ErrorKind::Timeout, elapsed)),
        }
    }

    fn enqueue(self: &Arc<Self>, hash: KeyHash) -> Result<oneshot::Receiver<Result<Option<ApiKey>>>> {
        let line = self.lines.get_or_default();
        let (answer, answered) = oneshot::channel();
        {
            let mut line = lock(line);
            if line.waiting.len() >= MAX_WAITING {
                // Those who gave up make room.
                line.waiting.retain(|lookup| !lookup.answer.is_closed());
            }
            if line.waiting.len() >= MAX_WAITING {
                let problem = "too many look-ups wait for the store";
                return Err(RepositoryError::new(ErrorKind::Unavailable, problem));
            }
            line.waiting.push(Lookup { hash, answer });
        }
        self.call(line);
        Ok(answered)
    }

    /// Has a batch made up of what waits in `line`, if there is a place for one.
    fn call(self: &Arc<Self>, line: &Arc<Mutex<Line>>) {
        if lock(line).calls() {
            let place = Place { line: Arc::clone(line), is_held: true };
            tokio::spawn(Arc::clone(self).hand_over(place));
        }
    }

    /// Hands over what waits, until nothing does.
    async fn hand_over(self: Arc<Self>, mut place: Place) {
        while let Some(batch) = place.take() {
            // What found no room in it.
            self.call(&place.line);
            let hashes: Vec<_> = batch.iter().map(|lookup| lookup.hash).collect();
            let (repository, timeout) = (Arc::clone(&self.repository), self.timeout);
            let asked = self.handle.spawn(async move {
                let found = tokio::time::timeout(timeout, find(repository.as_ref(), &hashes)).await;
                // Most have given up by themselves by then; whoever still waits is told the same.
                found.unwrap_or_else(|elapsed| {
                    of_all(hashes.len(), &RepositoryError::new(ErrorKind::Timeout, elapsed))
                })
            });
            // A panic ends no other look-up than these. It is in the log.
            let answers = asked.await.unwrap_or_else(|stopped| of_all(batch.len(), &stopped.into()));
            for (lookup, answer) in batch.into_iter().zip(answers) {
                // Who asked may have gone away.
                let _ = lookup.answer.send(answer);
            }
        }
    }
}

impl Line {
    /// Whether another batch is to be made up; it has its place then.
    fn calls(&mut self) -> bool {
        let is_needed = !self.is_called && !self.waiting.is_empty() && self.batches < MAX_BATCHES;
        if is_needed {
            self.is_called = true;
            self.batches += 1;
        }
        is_needed
    }
}

/// The place of a batch in its line, until nothing waits there any more.
struct Place {
    line: Arc<Mutex<Line>>,
    is_held: bool,
}

impl Place {
    /// What waits, and is still waited for. If nothing is, the place is given back at once: whatever comes next calls anew.
    fn take(&mut self) -> Option<Vec<Lookup>> {
        let mut line = lock(&self.line);
        line.is_called = false;
        line.waiting.retain(|lookup| !lookup.answer.is_closed());
        let count = line.waiting.len().min(MAX_BATCH);
        if count == 0 {
            line.batches -= 1;
            self.is_held = false;
            return None;
        }
        Some(line.waiting.drain(..count).collect())
    }
}

/// A place that is still held: its runtime has ended, and takes with it what else waits there.
impl Drop for Place {
    fn drop(&mut self) {
        if self.is_held {
            let mut line = lock(&self.line);
            line.is_called = false;
            line.batches -= 1;
            if line.batches == 0 {
                line.waiting.clear();
            }
        }
    }
}

/// Nothing that holds a line panics.
fn lock(line: &Mutex<Line>) -> MutexGuard<'_, Line> {
    line.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<R> fmt::Debug for LookupQueue<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LookupQueue").finish_non_exhaustive()
    }
}

async fn find(repository: &impl KeyRepository, hashes: &[KeyHash]) -> Vec<Result<Option<ApiKey>>> {
    if let [hash] = hashes {
        return vec![repository.get_by_hash(hash).await];
    }
    let found = repository.get_many_by_hash(hashes).await;
    found.unwrap_or_else(|error| of_all(hashes.len(), &error))
}

fn of_all(count: usize, error: &RepositoryError) -> Vec<Result<Option<ApiKey>>> {
    (0..count).map(|_| Err(error.clone())).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use tokio::sync::Notify;

    use super::*;
    use crate::domain::{ChangeContext, ChangeId, KeyFilter, KeyId, OwnerId, Revision, sample_key};
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
            self.let_go.notified().await;
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

        async fn delete(&self, _: KeyId, _: &ChangeContext) -> Result<ChangeId> {
            Ok(ChangeId::NONE)
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

    fn queue(slow: &Arc<Slow>, timeout: Duration) -> Arc<LookupQueue<Slow>> {
        Arc::new(LookupQueue::new(Arc::clone(slow), Handle::current(), timeout))
    }

    fn ask(queue: &Arc<LookupQueue<Slow>>, secret: &str) -> tokio::task::JoinHandle<Result<Option<ApiKey>>> {
        let (queue, hash) = (Arc::clone(queue), KeyHash::of(secret));
        tokio::spawn(async move { queue.get(&hash).await })
    }

    #[tokio::test]
    async fn what_waits_goes_together_and_each_gets_its_own_answer() {
        let slow = Arc::new(Slow::default());
        let queue = queue(&slow, NEVER);
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
        while lock(queue.lines.get_or_default()).waiting.len() < waiting.len() {
            tokio::task::yield_now().await;
        }
        slow.let_go.notify_one();
        until_asked(&slow, MAX_BATCHES + 1).await;
        slow.let_go.notify_waiters();
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
        for answer in alone {
            assert_eq!(answer.await.unwrap().unwrap(), None);
        }
    }

    #[tokio::test]
    async fn what_a_batch_has_no_room_for_goes_with_another() {
        let slow = Arc::new(Slow::default());
        let queue = queue(&slow, NEVER);
        let asked: Vec<_> = (0..2 * MAX_BATCH).map(|_| ask(&queue, "unknown")).collect();
        // Neither has been answered when the other begins.
        until_asked(&slow, 2).await;
        slow.let_go.notify_waiters();
        for answer in asked {
            assert_eq!(answer.await.unwrap().unwrap(), None);
        }
        assert_eq!(slow.calls.load(Ordering::SeqCst), 2);
    }

    /// What a runtime that ended left in its thread's line holds up nothing that comes later.
    #[test]
    fn a_runtime_that_ends_takes_its_look_ups_with_it() {
        let slow = Arc::new(Slow::default());
        let home =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        let queue = Arc::new(LookupQueue::new(Arc::clone(&slow), home.handle().clone(), NEVER));
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let first = runtime();
        first.block_on(async {
            for calls in 1..=MAX_BATCHES {
                let _hangs = ask(&queue, "unknown");
                until_asked(&slow, calls).await;
            }
            let _waits = ask(&queue, "unknown");
            tokio::task::yield_now().await;
            assert_eq!(lock(queue.lines.get_or_default()).waiting.len(), 1);
        });
        drop(first);
        assert_eq!(lock(queue.lines.get_or_default()).waiting.len(), 0);
        runtime().block_on(async {
            let answered = ask(&queue, "unknown");
            // It is asked on another thread, and may not wait yet.
            while !answered.is_finished() {
                slow.let_go.notify_waiters();
                tokio::task::yield_now().await;
            }
            assert_eq!(answered.await.unwrap().unwrap(), None);
        });
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_queue_goes_on() {
        let slow = Arc::new(Slow::default());
        let queue = queue(&slow, NEVER);
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
        let queue = queue(&slow, Duration::from_millis(10));
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
