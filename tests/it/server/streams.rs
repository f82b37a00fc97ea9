//! Tests that a stream is produced only as fast as its client reads it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use keyvouch::conformance::api::new_key;
use keyvouch::domain::{ApiKey, ChangeContext, ChangeId, KeyFilter, KeyHash, KeyId, OwnerId, Revision};
use keyvouch::grpc::pb;
use keyvouch::repository::{Backend, ErrorKind, KeyRepository, KeyStream, Listed, Result};
use tokio::sync::watch;

use crate::sql::key;
use crate::support::TestServer;

/// More keys than can be in transit between a server and a client that does not read.
const MANY: usize = 100_000;

/// A backend whose listing never ends.
#[derive(Clone, Debug)]
struct Endless {
    read: Arc<AtomicUsize>,
    /// Whether a listing is being read.
    is_open: watch::Sender<bool>,
}

impl Endless {
    fn new() -> Self {
        Self { read: Arc::default(), is_open: watch::Sender::new(false) }
    }
}

/// Marks a listing as closed when it is dropped.
struct Guard(watch::Sender<bool>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

impl fmt::Display for Endless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Endless")
    }
}

impl From<Endless> for Backend {
    fn from(double: Endless) -> Self {
        Self::new(double)
    }
}

#[async_trait]
impl KeyRepository for Endless {
    async fn get_by_hash(&self, _: &KeyHash) -> Result<Option<ApiKey>> {
        Ok(None)
    }

    async fn get(&self, _: KeyId) -> Result<Option<ApiKey>> {
        Ok(None)
    }

    async fn create(&self, key: ApiKey, _: &ChangeContext) -> Result<ApiKey> {
        Ok(key)
    }

    async fn update(&self, _: ApiKey, _: Revision, _: &ChangeContext) -> Result<ApiKey> {
        Err(ErrorKind::NotFound.into())
    }

    async fn delete(&self, _: KeyId, _: &ChangeContext) -> Result<ChangeId> {
        Err(ErrorKind::NotFound.into())
    }

    fn list_by_owner(&self, _: &OwnerId, _: &KeyFilter) -> KeyStream {
        self.is_open.send_replace(true);
        let guard = Guard(self.is_open.clone());
        let (read, listed) = (Arc::clone(&self.read), key("a"));
        let next = move |guard| {
            read.fetch_add(1, Ordering::SeqCst);
            let listed = listed.clone();
            async move { Some((Ok(Listed::Read(listed)), guard)) }
        };
        stream::unfold(guard, next).boxed()
    }
}

#[tokio::test]
async fn a_listing_stops_when_its_client_disconnects() {
    let backend = Endless::new();
    let server = TestServer::start(backend.clone()).await;
    let mut key_store = server.api().await.key_store();
    let request = pb::StreamKeysRequest { owner_id: new_key().owner_id, ..pb::StreamKeysRequest::default() };
    let mut keys = key_store.stream_keys(request).await.unwrap().into_inner();
    for _ in 0..10 {
        keys.message().await.unwrap().unwrap();
    }
    assert!(*backend.is_open.borrow());
    drop(keys);
    backend.is_open.subscribe().wait_for(|is_open| !is_open).await.unwrap();
    let read = backend.read.load(Ordering::SeqCst);
    assert!((10..MANY).contains(&read), "{read}");
}
