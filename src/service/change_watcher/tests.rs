use async_trait::async_trait;

use super::*;
use crate::cache::{CacheStack, FeedOptions, LoadLimits, StackOptions};
use crate::domain::{
    ApiKey, BootClock, ChangeContext, Clock as _, KeyHash, KeyId, Revision, RevokeReason, SystemClock,
    SystemEntropy, sample_key,
};
use crate::repository::{Backend, KeyRepository as _, MemoryRepository, RecentChanges};

/// A backend in memory, with a follower that reads its feed when a test lets it.
struct Replica {
    store: MemoryRepository,
    stack: CacheStack,
}

impl Replica {
    async fn start() -> Self {
        let store = MemoryRepository::new();
        Self::of(store.clone(), store.into()).await
    }

    /// Starts a replica whose `backend` stores its keys in `store`.
    async fn of(store: MemoryRepository, backend: Backend) -> Self {
        let replica = Self::unread(store, backend).await;
        replica.poll().await;
        replica
    }

    /// Starts a replica that may not have read the feed.
    async fn unread(store: MemoryRepository, backend: Backend) -> Self {
        let options = StackOptions {
            local: None,
            custom: None,
            redis: None,
            limits: LoadLimits { max_loads: 100, deadline: Duration::from_mins(1) },
            feed: FeedOptions { poll_interval: Duration::from_hours(1), deadline: Duration::from_mins(1) },
            max_staleness: Duration::from_mins(5),
        };
        let built = CacheStack::build(backend, &options, &entropy(), &(Arc::new(BootClock) as _)).await;
        let mut stack = built.unwrap();
        tokio::spawn(stack.follower.take().unwrap().run());
        Self { store, stack }
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

/// A feed in which the event with this revision can't be read.
#[derive(Clone, Debug)]
struct OneUnreadable(MemoryRepository, i64);

impl OneUnreadable {
    fn split(&self, events: &mut Vec<KeyEvent>) -> Vec<UnreadableEvent> {
        let unreadable = events.extract_if(.., |event| event.revision == Revision::new(self.1));
        unreadable.map(|event| UnreadableEvent { partition: 0, revision: event.revision }).collect()
    }
}

#[async_trait]
impl ChangeFeed for OneUnreadable {
    async fn changes(&self, after: Option<&FeedPosition>, limit: usize) -> Result<Changes> {
        let mut changes = self.0.changes(after, limit).await?;
        changes.unreadable = self.split(&mut changes.events);
        Ok(changes)
    }

    async fn recent_changes(&self, limit: usize) -> Result<RecentChanges> {
        let mut recent = self.0.recent_changes(limit).await?;
        recent.unreadable = self.split(&mut recent.events);
        Ok(recent)
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

/// Returns the kind of the error that ends `news`.
async fn end(news: &mut BoxStream<'static, Result<News>>) -> ErrorKind {
    let ended = async {
        loop {
            if let Err(error) = news.next().await.unwrap() {
                return error.kind();
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap()
}

/// It is unknown which key an unreadable event is about, so a stream that would skip it has to end. It ends
/// wherever the event is: in an update of the follower, or in a full page that is read to catch up.
#[tokio::test]
async fn an_unreadable_event_ends_the_streams_that_did_not_pass_it() {
    let broken = i64::try_from(BATCH).unwrap();
    let store = MemoryRepository::new();
    let feed = OneUnreadable(store.clone(), broken);
    let replica = Replica::of(store.clone(), Backend::new(store).with_feed(feed.clone())).await;
    let watcher = replica.watcher(feed);
    for number in 1..broken {
        replica.create(&format!("key {number}")).await;
    }
    replica.poll().await;
    let mut following = watch(&watcher, None);
    assert!(following.next().await.unwrap().unwrap().events.is_empty());
    replica.create("unreadable").await;
    replica.poll().await;
    assert_eq!(end(&mut following).await, ErrorKind::PositionLost);
    // Resuming before the event fails, as long as it is stored.
    for position in [FeedPosition::beginning(), FeedPosition::beginning()] {
        assert_eq!(end(&mut watch(&watcher, Some(position))).await, ErrorKind::PositionLost);
    }
    // A stream without a position begins after the event, and its positions can be resumed.
    let mut anew = watch(&watcher, None);
    let position = anew.next().await.unwrap().unwrap().position;
    replica.create("readable").await;
    replica.poll().await;
    assert_eq!(revisions(&mut anew, 1).await, [broken + 1]);
    assert_eq!(revisions(&mut watch(&watcher, Some(position)), 1).await, [broken + 1]);
}

/// Before the feed was read, the present is unknown. A stream from the present would replay all events.
#[tokio::test]
async fn a_stream_from_the_present_begins_only_after_the_feed_was_read() {
    let store = MemoryRepository::new();
    let backend = Backend::new(store.clone()).with_feed(Unreadable);
    let replica = Replica::unread(store, backend).await;
    let watcher = replica.watcher(Unreadable);
    let Err(error) = watcher.watch(None, &Caller::admin("tests".into(), "r")) else {
        panic!("the stream began")
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(watcher.watch(Some(FeedPosition::beginning()), &Caller::admin("tests".into(), "r")).is_ok());
}
