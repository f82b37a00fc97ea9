use async_trait::async_trait;

use super::*;
use crate::cache::{CacheStack, FeedOptions, LoadLimits, StackOptions};
use crate::domain::{
    ApiKey, BootClock, ChangeContext, Clock as _, KeyHash, KeyId, Revision, RevokeReason, SystemClock,
    SystemEntropy, sample_key,
};
use crate::repository::{Changes, KeyRepository as _, MemoryRepository, RecentChanges, UnreadableEvent};

/// A backend in memory, with a follower that reads its feed when a test lets it.
struct Replica {
    store: MemoryRepository,
    stack: CacheStack,
}

impl Replica {
    async fn start() -> Self {
        let store = MemoryRepository::new();
        let options = StackOptions {
            local: None,
            custom: None,
            redis: None,
            limits: LoadLimits { max_loads: 100, deadline: Duration::from_mins(1) },
            feed: FeedOptions { poll_interval: Duration::from_hours(1), deadline: Duration::from_mins(1) },
            max_staleness: Duration::from_mins(5),
        };
        let built =
            CacheStack::build(store.clone().into(), &options, &entropy(), &(Arc::new(BootClock) as _)).await;
        let mut stack = built.unwrap();
        tokio::spawn(stack.follower.take().unwrap().run());
        let replica = Self { store, stack };
        replica.poll().await;
        replica
    }

    fn watcher(&self, feed: impl ChangeFeed + 'static) -> ChangeWatcher {
        ChangeWatcher::new(Some(Arc::new(feed)), self.stack.feed.clone(), Arc::clone(&self.stack.knowledge))
    }

    async fn create(&self, secret: &str) -> ApiKey {
        let hash = KeyHash::of(secret);
        let id = KeyId::generate(SystemClock.now(), &hash, &SystemEntropy).unwrap();
        self.store.create(ApiKey { id, hash, ..sample_key() }, &context()).await.unwrap()
    }

    /// Completes a poll.
    async fn poll(&self) {
        self.stack.feed.as_ref().unwrap().poll().await.unwrap();
    }
}

/// A feed that can't be read.
#[derive(Debug)]
struct Unreadable;

#[async_trait]
impl ChangeFeed for Unreadable {
    async fn changes(&self, _: Option<&FeedPosition>, _: usize) -> Result<Changes> {
        Err(ErrorKind::Corrupt.into())
    }

    async fn recent_changes(&self, _: usize) -> Result<RecentChanges> {
        Err(ErrorKind::Corrupt.into())
    }
}

/// A feed in which the last event of a full page can't be read.
#[derive(Debug)]
struct OneUnreadable(MemoryRepository);

#[async_trait]
impl ChangeFeed for OneUnreadable {
    async fn changes(&self, after: Option<&FeedPosition>, limit: usize) -> Result<Changes> {
        let mut changes = self.0.changes(after, limit).await?;
        if changes.is_full(limit) {
            let revision = changes.events.pop().unwrap().revision;
            changes.unreadable.push(UnreadableEvent { partition: 0, revision });
        }
        Ok(changes)
    }

    async fn recent_changes(&self, limit: usize) -> Result<RecentChanges> {
        self.0.recent_changes(limit).await
    }
}

fn entropy() -> Arc<dyn crate::domain::Entropy> {
    Arc::new(SystemEntropy)
}

fn context() -> ChangeContext {
    ChangeContext::new("token:tests", "r", SystemClock.now())
}

fn watch(watcher: &ChangeWatcher, position: Option<FeedPosition>) -> BoxStream<'static, Result<News>> {
    watcher.watch(position, &Caller::admin("tests".into(), "r")).unwrap()
}

/// Reads `news` until `count` events were delivered, and returns their revisions.
async fn revisions(news: &mut BoxStream<'static, Result<News>>, count: usize) -> Vec<i64> {
    let mut revisions = Vec::new();
    let read = async {
        while revisions.len() < count {
            let events = news.next().await.unwrap().unwrap().events;
            revisions.extend(events.into_iter().map(|event| event.revision.get()));
        }
    };
    tokio::time::timeout(Duration::from_secs(30), read).await.unwrap();
    revisions
}

#[tokio::test]
async fn the_backend_is_read_to_catch_up_alone() {
    let replica = Replica::start().await;
    let watcher = replica.watcher(Unreadable);
    let mut news = watch(&watcher, None);
    let key = replica.create("watched").await;
    replica.store.revoke(key.id, RevokeReason::default(), &context()).await.unwrap();
    replica.poll().await;
    assert_eq!(revisions(&mut news, 2).await, [1, 2]);
    let mut resumed = watch(&watcher, Some(FeedPosition::beginning()));
    assert_eq!(resumed.next().await.unwrap().unwrap_err().kind(), ErrorKind::Corrupt);
}

/// A client falls behind by more updates than are kept for it, and others resume at positions in between.
#[tokio::test]
async fn each_change_is_delivered_once() {
    const CHANGES: i64 = 200;
    let replica = Replica::start().await;
    let watcher = replica.watcher(replica.store.clone());
    let mut slow = watch(&watcher, None);
    let mut positions = vec![FeedPosition::beginning()];
    for number in 1..=CHANGES {
        let key = replica.create(&format!("key {number}")).await;
        positions.push(FeedPosition::of(key.last_change()));
        if number % 2 == 0 {
            replica.poll().await;
        }
    }
    assert_eq!(revisions(&mut slow, 200).await, (1..=CHANGES).collect::<Vec<_>>());
    // Not polled yet, so that streams read it from the backend before the follower does.
    let last = replica.create("one more").await;
    assert_eq!(last.revision, Revision::new(CHANGES + 1));
    let mut resumed = Vec::new();
    for (revision, position) in (1..).zip(positions).step_by(40) {
        let mut news = watch(&watcher, Some(position));
        let missed = (revision..=CHANGES + 1).collect::<Vec<_>>();
        assert_eq!(revisions(&mut news, missed.len()).await, missed);
        resumed.push(news);
    }
    replica.poll().await;
    replica.create("the last").await;
    replica.poll().await;
    for mut news in resumed {
        assert_eq!(revisions(&mut news, 1).await, [CHANGES + 2]);
    }
}

/// An unreadable event on a full page does not end catching up.
#[tokio::test]
async fn a_page_with_an_unreadable_event_is_followed_by_the_next_one() {
    let replica = Replica::start().await;
    for number in 0..=BATCH {
        replica.create(&format!("key {number}")).await;
    }
    replica.poll().await;
    let last = i64::try_from(BATCH).unwrap() + 1;
    let watcher = replica.watcher(OneUnreadable(replica.store.clone()));
    let mut news = watch(&watcher, Some(FeedPosition::beginning()));
    let expected: Vec<_> = (1..=last).filter(|revision| *revision != last - 1).collect();
    assert_eq!(revisions(&mut news, expected.len()).await, expected);
}
