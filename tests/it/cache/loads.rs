//! Tests of how many loads reach the backend.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_that_miss_the_same_key_make_one_load() {
    let store = Faulty::new();
    let replica = Arc::new(Replica::start(store.clone(), &unpolled(options())).await);
    store.set(Mode::Hang);
    let hash = KeyHash::of("missing");
    let mut waiting = Vec::new();
    for _ in 0..1_000 {
        let replica = Arc::clone(&replica);
        waiting.push(tokio::spawn(async move { replica.find(&hash).await.entry.key.is_none() }));
    }
    until("the load", async || store.lookups() == 1).await;
    // The callers that began the load are cancelled. It continues for the others.
    for task in waiting.drain(..500) {
        task.abort();
    }
    store.set(Mode::Work);
    for task in waiting {
        assert!(task.await.unwrap());
    }
    assert_eq!(store.lookups(), 1);
    assert_eq!(replica.find(&hash).await.tier, Tier::Local);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_is_shared_and_not_kept() {
    let store = Faulty::new();
    let replica = Arc::new(Replica::start(store.clone(), &unpolled(options())).await);
    let hash = KeyHash::of("missing");
    store.set(Mode::Hang);
    let mut waiting = Vec::new();
    for _ in 0..10 {
        let replica = Arc::clone(&replica);
        waiting.push(tokio::spawn(async move {
            replica.find_within(&hash, Duration::from_mins(5)).await.map(drop)
        }));
    }
    until("the load", async || store.lookups() == 1).await;
    until("all to wait", async || Arc::strong_count(&replica) == 11).await;
    store.set(Mode::Fail(ErrorKind::Corrupt));
    // The load that hung completes with the mode that it read at its start. The ones after it fail.
    for task in waiting {
        let _ = task.await.unwrap();
    }
    let other = KeyHash::of("other");
    let failed = replica.find_within(&other, Duration::from_mins(5)).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Corrupt);
    store.set(Mode::Work);
    assert!(replica.find(&other).await.entry.key.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loads_are_bounded_and_hits_go_on() {
    let store = Faulty::new();
    let limits = LoadLimits { max_loads: 4, deadline: Duration::from_millis(200) };
    let replica =
        Arc::new(Replica::start(store.clone(), &unpolled(StackOptions { limits, ..options() })).await);
    let good = replica.create("good").await;
    store.set(Mode::Hang);
    let mut hanging = Vec::new();
    for number in 0..4 {
        let replica = Arc::clone(&replica);
        let hash = KeyHash::of(&format!("missing {number}"));
        hanging.push(tokio::spawn(async move {
            replica.find_within(&hash, Duration::from_mins(5)).await.map(drop)
        }));
    }
    until("the loads", async || store.lookups() == 4).await;
    let refused = replica.find_within(&KeyHash::of("one more"), Duration::from_mins(5)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    assert_eq!(replica.find(&good.hash).await.tier, Tier::Local);
    for task in hanging {
        assert_eq!(task.await.unwrap().unwrap_err().kind(), ErrorKind::Timeout, "each has its deadline");
    }
    store.set(Mode::Work);
    assert!(replica.find(&KeyHash::of("one more")).await.entry.key.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_random_keys_evicts_none_and_stays_within_its_bound() {
    let store = Faulty::new();
    let replica = Replica::start(store.clone(), &unpolled(options())).await;
    let mut good = Vec::new();
    for number in 0..500 {
        good.push(replica.create(&format!("good {number}")).await.hash);
    }
    let before = store.lookups();
    // `scripts/prove` sends more lookups.
    let flood = std::env::var("KEYVOUCH_PROVE_FLOOD").map_or(20_000, |text| text.parse().unwrap());
    for number in 0..flood {
        replica.find(&KeyHash::of(&format!("random {number}"))).await;
    }
    assert_eq!(store.lookups() - before, flood);
    let (present, absent) = replica.local.as_ref().unwrap().len();
    assert_eq!(present, 500);
    assert!(absent <= 1_000, "{absent}");
    for hash in &good {
        assert_eq!(replica.find(hash).await.tier, Tier::Local);
    }
}
