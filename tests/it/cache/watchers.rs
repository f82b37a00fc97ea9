//! Tests that clients that watch changes get the events that this replica reads for its caches.

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use keyvouch::domain::Revision;
use keyvouch::repository::FeedPosition;
use keyvouch::service::{Caller, ChangeWatcher, News};

use super::*;

fn watch(watcher: &ChangeWatcher, position: Option<FeedPosition>) -> BoxStream<'static, Result<News>> {
    watcher.watch(position, &Caller::admin("tests".into(), "r")).unwrap()
}

/// Reads `news` until `count` events were delivered. Returns their revisions.
async fn revisions(news: &mut BoxStream<'static, Result<News>>, count: usize) -> Vec<Revision> {
    let mut revisions = Vec::new();
    while revisions.len() < count {
        let events = news.next().await.unwrap().unwrap().events;
        revisions.extend(events.into_iter().map(|event| event.revision));
    }
    revisions
}

fn all_through(last: i64) -> Vec<Revision> {
    (1..=last).map(Revision::new).collect()
}

#[tokio::test]
async fn the_backend_is_read_to_catch_up_alone() {
    let replica = Replica::start(MemoryRepository::new(), &unpolled(options())).await;
    replica.poll().await;
    let unreadable = Faulty::new();
    unreadable.set(Mode::Fail(ErrorKind::Corrupt));
    let watcher =
        ChangeWatcher::new(Some(Arc::new(unreadable)), replica.feed.clone(), Arc::clone(&replica.knowledge));
    let mut news = watch(&watcher, None);
    let key = replica.create("watched").await;
    replica.revoke(key.id).await;
    replica.poll().await;
    assert_eq!(revisions(&mut news, 2).await, all_through(2));
    let mut resumed = watch(&watcher, Some(FeedPosition::beginning()));
    assert_eq!(resumed.next().await.unwrap().unwrap_err().kind(), ErrorKind::Corrupt);
}

/// There are more updates than a client may be behind, and clients resume from every position.
#[tokio::test]
async fn each_change_is_delivered_once() {
    const CHANGES: i64 = 200;
    let replica = Replica::start(MemoryRepository::new(), &unpolled(options())).await;
    replica.poll().await;
    let feed = replica.backend.feed.clone();
    let watcher = ChangeWatcher::new(feed, replica.feed.clone(), Arc::clone(&replica.knowledge));
    let mut slow = watch(&watcher, None);
    let mut positions = vec![FeedPosition::beginning()];
    for number in 1..=CHANGES {
        let key = replica.create(&format!("key {number}")).await;
        positions.push(FeedPosition::of(key.last_change()));
        if number % 2 == 0 {
            replica.poll().await;
        }
    }
    assert_eq!(revisions(&mut slow, 200).await, all_through(CHANGES));
    // This change is not polled yet. The watcher reads it from the backend first, and the follower later.
    replica.create("one more").await;
    let mut resumed = Vec::new();
    for (missed, position) in positions.into_iter().enumerate().step_by(40) {
        let mut news = watch(&watcher, Some(position));
        let expected = all_through(CHANGES + 1).split_off(missed);
        assert_eq!(revisions(&mut news, expected.len()).await, expected);
        resumed.push(news);
    }
    replica.poll().await;
    replica.create("the last").await;
    replica.poll().await;
    for mut news in resumed {
        assert_eq!(revisions(&mut news, 1).await, [Revision::new(CHANGES + 2)]);
    }
}
