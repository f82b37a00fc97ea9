use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::queue::{MAX_BATCH, MAX_BATCHES};
use super::*;
use crate::domain::{
    BootClock, ChangeContext, ChangeId, KeyFilter, KeyId, OwnerId, Revision, SystemEntropy, sample_key,
};
use crate::repository::KeyStream;

/// Longer than any test.
const NEVER: Duration = Duration::from_mins(10);

/// A repository with one key. It answers when it is released, and counts its calls.
#[derive(Debug, Default)]
struct Slow {
    released: Notify,
    calls: AtomicUsize,
}

impl fmt::Display for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slow")
    }
}

impl Slow {
    fn answer(hash: &KeyHash) -> Result<Option<ApiKey>> {
        assert_ne!(*hash, KeyHash::of("panic"), "as the test demands");
        let key = sample_key();
        if *hash == KeyHash::of("corrupt") {
            return Err(ErrorKind::Corrupt.into());
        }
        // A record of another key than the requested one.
        Ok((key.hash == *hash || *hash == KeyHash::of("mixed up")).then_some(key))
    }

    async fn asked(&self) {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.released.notified().await;
    }
}

#[async_trait]
impl KeyRepository for Slow {
    async fn get_by_hash(&self, hash: &KeyHash) -> Result<Option<ApiKey>> {
        self.asked().await;
        Self::answer(hash)
    }

    async fn get_many_by_hash(&self, hashes: &[KeyHash]) -> Result<Vec<Result<Option<ApiKey>>>> {
        self.asked().await;
        Ok(hashes.iter().map(Self::answer).collect())
    }

    fn supports_batching(&self) -> bool {
        true
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

/// Waits until `condition` holds, within a limit that only a fault exceeds.
async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), waiting).await.unwrap();
}

async fn until_asked(slow: &Slow, times: usize) {
    until(|| slow.calls.load(Ordering::SeqCst) >= times).await;
}

/// Returns a loader without caches.
fn loader(slow: &Arc<Slow>, deadline: Duration, handle: Handle) -> Loader {
    let stopwatch = Arc::new(BootClock);
    let breaker = Arc::new(Breaker::new(1, Arc::<BootClock>::clone(&stopwatch), Arc::new(SystemEntropy)));
    let knowledge = Arc::new(Knowledge::without_feed(stopwatch));
    let limits = LoadLimits { max_loads: 1_000, deadline };
    Loader::new(Vec::new(), Arc::<Slow>::clone(slow), knowledge, breaker, limits, handle)
}

type Outcome = std::result::Result<Option<KeyHash>, ErrorKind>;

fn find(loader: &Loader, secret: &str) -> tokio::task::JoinHandle<Outcome> {
    let (loader, hash) = (loader.clone(), KeyHash::of(secret));
    tokio::spawn(async move {
        let demand = Demand { asked_at: loader.tiers.knowledge.moment(), max_staleness: Duration::ZERO };
        let found = loader.find(&hash, &demand).await.map_err(|error| error.kind())?;
        Ok(found.entry.key.map(|key| key.hash))
    })
}

#[tokio::test]
async fn waiting_loads_share_a_call_and_each_gets_its_own_answer() {
    let slow = Arc::new(Slow::default());
    let loader = loader(&slow, NEVER, Handle::current());
    // While slots are free, each load leaves alone, since no other load is waiting.
    let mut alone = Vec::new();
    for calls in 1..=MAX_BATCHES {
        alone.push(find(&loader, &format!("unknown {calls}")));
        until_asked(&slow, calls).await;
    }
    let waiting: Vec<_> = ["secret", "corrupt", "unknown", "mixed up"].map(|it| find(&loader, it)).into();
    until(|| loader.flights.lock().len() >= MAX_BATCHES + waiting.len()).await;
    slow.released.notify_one();
    until_asked(&slow, MAX_BATCHES + 1).await;
    slow.released.notify_waiters();
    let mut answers = Vec::new();
    for answer in waiting {
        answers.push(answer.await.unwrap());
    }
    let expected =
        [Ok(Some(KeyHash::of("secret"))), Err(ErrorKind::Corrupt), Ok(None), Err(ErrorKind::Corrupt)];
    assert_eq!(answers, expected);
    assert_eq!(slow.calls.load(Ordering::SeqCst), MAX_BATCHES + 1, "the four were one call");
    for answer in alone {
        assert_eq!(answer.await.unwrap(), Ok(None));
    }
}

#[tokio::test]
async fn loads_without_room_in_a_batch_leave_with_another_one() {
    let slow = Arc::new(Slow::default());
    let loader = loader(&slow, NEVER, Handle::current());
    let loads: Vec<_> =
        (0..2 * MAX_BATCH).map(|number| find(&loader, &format!("unknown {number}"))).collect();
    // Both loads reach the repository before either is answered.
    until_asked(&slow, 2).await;
    slow.released.notify_waiters();
    for load in loads {
        assert_eq!(load.await.unwrap(), Ok(None));
    }
    assert_eq!(slow.calls.load(Ordering::SeqCst), 2);
}

/// A thread whose runtime shuts down takes no load with it that a call of another thread waits for, whether the
/// load is in flight or still queued. Later loads are not blocked.
#[test]
fn loads_outlive_the_runtime_that_began_them() {
    let slow = Arc::new(Slow::default());
    let home = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    let loader = loader(&slow, NEVER, home.handle().clone());
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    let queued: Vec<_> = (0..=MAX_BATCH).map(|number| format!("queued {number}")).collect();
    first.block_on(async {
        for calls in 1..=MAX_BATCHES {
            let _hangs = find(&loader, &format!("unknown {calls}"));
            until_asked(&slow, calls).await;
        }
        for secret in &queued {
            let _waits = find(&loader, secret);
        }
        until(|| loader.flights.lock().len() >= MAX_BATCHES + queued.len()).await;
    });
    let joined = second.block_on(async {
        let flights = loader.flights.lock().len();
        // A demand that the loads in progress meet.
        let demand =
            Demand { asked_at: loader.tiers.knowledge.moment(), max_staleness: Duration::from_mins(1) };
        let secrets = (1..=MAX_BATCHES).map(|calls| format!("unknown {calls}")).chain(queued);
        let joined: Vec<_> =
            secrets.map(|secret| loader.flight(&KeyHash::of(&secret), &demand).unwrap()).collect();
        assert_eq!(loader.flights.lock().len(), flights, "all calls joined a load");
        joined
    });
    drop(first);
    second.block_on(async {
        let (landed, mut released) = (join_all(joined.into_iter().map(Flight::landed)), 0);
        tokio::pin!(landed);
        // The loads run on another thread, and may not wait for the notification yet.
        let outcomes = loop {
            slow.released.notify_waiters();
            released += 1;
            assert!(released < 60_000, "the loads are never run");
            tokio::select! {
                outcomes = &mut landed => break outcomes,
                () = tokio::time::sleep(Duration::from_millis(1)) => {}
            }
        };
        for outcome in outcomes {
            assert!(outcome.unwrap().entry.key.is_none());
        }
        let answered = find(&loader, "later");
        until(|| {
            slow.released.notify_waiters();
            answered.is_finished()
        })
        .await;
        assert_eq!(answered.await.unwrap(), Ok(None));
    });
}

#[tokio::test]
async fn a_panic_fails_its_batch_alone() {
    let slow = Arc::new(Slow::default());
    let loader = loader(&slow, NEVER, Handle::current());
    for calls in 1..=2 {
        let panicking = find(&loader, "panic");
        until_asked(&slow, calls).await;
        slow.released.notify_one();
        assert_eq!(panicking.await.unwrap(), Err(ErrorKind::Internal));
    }
    let answered = find(&loader, "secret");
    until_asked(&slow, 3).await;
    slow.released.notify_one();
    assert_eq!(answered.await.unwrap(), Ok(Some(KeyHash::of("secret"))));
}

#[tokio::test]
async fn a_load_without_an_answer_times_out_and_gives_its_slot_back() {
    let slow = Arc::new(Slow::default());
    let loader = loader(&slow, Duration::from_millis(50), Handle::current());
    let hanging: Vec<_> =
        (0..MAX_BATCHES).map(|number| find(&loader, &format!("unknown {number}"))).collect();
    for load in hanging {
        assert_eq!(load.await.unwrap(), Err(ErrorKind::Timeout));
    }
    let before = slow.calls.load(Ordering::SeqCst);
    let answered = find(&loader, "secret");
    until_asked(&slow, before + 1).await;
    slow.released.notify_waiters();
    assert_eq!(answered.await.unwrap(), Ok(Some(KeyHash::of("secret"))));
}

/// One failed call of the backend does not open the breaker, however many loads share it.
#[tokio::test]
async fn a_failed_batch_counts_as_one_failure() {
    let slow = Arc::new(Slow::default());
    let loader = loader(&slow, Duration::from_millis(50), Handle::current());
    let loads: Vec<_> = (0..MAX_BATCH).map(|number| find(&loader, &format!("unknown {number}"))).collect();
    for load in loads {
        assert_eq!(load.await.unwrap(), Err(ErrorKind::Timeout));
    }
    assert_eq!(slow.calls.load(Ordering::SeqCst), 1);
    assert!(!loader.tiers.breaker.is_open());
}
