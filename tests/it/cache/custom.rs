//! A cache that is not of this crate, as its author would write and add it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;

use async_trait::async_trait;
use keyvouch::app::Surroundings;
use keyvouch::cache::{CustomCache, Entry, KeyCache, Knowledge};
use keyvouch::config::Config;

use super::*;

/// Keeps all entries until they expire.
#[derive(Clone, Debug)]
struct MapCache {
    entries: Arc<Mutex<HashMap<KeyHash, Entry>>>,
    knowledge: Arc<Knowledge>,
}

impl MapCache {
    fn new(knowledge: Arc<Knowledge>) -> Self {
        Self { entries: Arc::default(), knowledge }
    }

    fn len(&self) -> usize {
        self.entries.lock().unwrap().len()
    }
}

impl fmt::Display for MapCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MapCache")
    }
}

#[async_trait]
impl KeyCache for MapCache {
    fn tier(&self) -> Tier {
        Tier::Local
    }

    async fn get(&self, hash: &KeyHash) -> Option<Entry> {
        let entry = self.entries.lock().unwrap().get(hash).cloned()?;
        (entry.kept_until > self.knowledge.moment() && self.knowledge.fits(hash, &entry)).then_some(entry)
    }

    async fn put(&self, hash: &KeyHash, entry: &Entry) {
        let mut entries = self.entries.lock().unwrap();
        // Checked under the lock: `remove` is called after a fence was raised, and waits for it.
        if self.knowledge.fits(hash, entry) {
            entries.insert(*hash, entry.clone());
        }
    }

    async fn remove(&self, hash: &KeyHash) {
        let mut entries = self.entries.lock().unwrap();
        if entries.get(hash).is_some_and(|entry| !self.knowledge.fits(hash, entry)) {
            entries.remove(hash);
        }
    }

    async fn forget(&self, hash: &KeyHash) {
        self.entries.lock().unwrap().remove(hash);
    }

    async fn clear(&self) {
        self.entries.lock().unwrap().clear();
    }
}

/// Returns settings of a `MapCache`, and where the cache is put once it was made.
fn map_cache() -> (CustomCache, Arc<Mutex<Option<MapCache>>>) {
    let made: Arc<Mutex<Option<MapCache>>> = Arc::default();
    let kept = Arc::clone(&made);
    let custom = CustomCache::new(move |knowledge| {
        let cache = MapCache::new(knowledge);
        *kept.lock().unwrap() = Some(cache.clone());
        cache
    });
    (custom, made)
}

mod conformance {
    use super::*;
    keyvouch::cache_conformance!(async {
        let (custom, made) = map_cache();
        let options = StackOptions { local: None, custom: Some(custom), ..unpolled(options()) };
        let mut replica = Replica::start(MemoryRepository::new(), &options).await;
        replica.stop_following().await;
        let cache = Arc::new(made.lock().unwrap().take().unwrap());
        (Subject { cache, knowledge: Arc::clone(&replica.knowledge), keeps_negative_entries: true }, replica)
    });
}

/// Two replicas with a cache of this kind each: a lookup is answered from it until another replica revokes the key.
#[tokio::test]
async fn a_revocation_reaches_it() {
    let store = MemoryRepository::new();
    let (custom, made) = map_cache();
    let options = StackOptions { local: None, custom: Some(custom), ..options() };
    let replica = Replica::start(store.clone(), &options).await;
    let cache = made.lock().unwrap().take().unwrap();
    let other = Replica::start(store, &options).await;
    let key = replica.create("custom").await;
    until("an entry", async || {
        assert!(replica.is_active(&key.hash).await);
        cache.len() == 1
    })
    .await;
    assert_eq!(replica.find(&key.hash).await.tier, Tier::Local);
    other.revoke(key.id).await;
    until("the revocation", async || !replica.is_active(&key.hash).await).await;
}

/// A server takes it from its surroundings.
#[tokio::test]
async fn a_server_can_have_one() {
    let (custom, made) = map_cache();
    let surroundings = Surroundings { cache: Some(custom), ..Surroundings::default() };
    let mut config: Config = crate::support::config();
    config.cache.local.enabled = false;
    let server = crate::support::TestServer::start_in(MemoryRepository::new(), &config, surroundings).await;
    let api = server.api().await;
    let (_, secret) = api.create(keyvouch::conformance::api::new_key()).await;
    let cache = made.lock().unwrap().take().unwrap();
    until("an entry", async || {
        assert_eq!(api.reason(&secret).await, keyvouch::grpc::pb::Reason::Valid);
        cache.len() == 1
    })
    .await;
}
