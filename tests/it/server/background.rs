//! Tests of the way in which background tasks use the backend: through the caches, or directly.

use std::sync::Arc;
use std::time::Duration;

use keyvouch::app::Surroundings;
use keyvouch::config::HumanDuration;
use keyvouch::conformance::api::{error_reason, new_key, seconds};
use keyvouch::domain::{Clock as _, ManualClock, SystemClock};
use keyvouch::grpc::pb;
use keyvouch::repository::{Backend, MemoryRepository};
use tonic::Code;

use super::faulty::{Faulty, Mode};
use crate::support::{TestServer, config, until};

/// Otherwise the pings of a backend that hangs would take up its connections.
#[tokio::test]
async fn a_ping_that_times_out_is_cancelled() {
    let store = Faulty::new();
    let _server = TestServer::start_with(store.clone(), &config()).await;
    until("a ping", async || store.pings().begun > 0).await;
    store.set(Mode::Hang);
    let begun = store.pings().begun;
    until("pings of the backend that hangs", async || store.pings().begun >= begun + 3).await;
    assert_eq!(store.pings().most, 1);
}

/// Without a change feed, nothing else would evict the key from the cache of this replica.
#[tokio::test]
async fn an_expired_key_that_is_deleted_is_evicted_from_the_cache() {
    let clock = Arc::new(ManualClock::new(SystemClock.now()));
    let surroundings = Surroundings { clock: Arc::<ManualClock>::clone(&clock), ..Surroundings::default() };
    let mut config = config();
    config.prune.expired_for = HumanDuration(Duration::from_hours(1));
    config.prune.interval = HumanDuration(Duration::from_millis(20));
    let server = TestServer::start_in(Backend::new(MemoryRepository::new()), &config, surroundings).await;
    let api = server.api().await;
    let expiry = Some(pb::create_key_request::Expiry::Ttl(seconds(60)));
    let (key, secret) = api.create(pb::CreateKeyRequest { expiry, ..new_key() }).await;
    assert_eq!(api.reason(&secret).await, pb::Reason::Valid);
    clock.advance(Duration::from_mins(2));
    assert_eq!(api.reason(&secret).await, pb::Reason::Expired);
    clock.advance(Duration::from_hours(1));
    until("the deletion", async || {
        let request = pb::GetKeyRequest { id: key.id.clone() };
        match api.key_store().get_key(request).await {
            Ok(_) => false,
            missing => error_reason(missing).0 == Code::NotFound,
        }
    })
    .await;
    // The deletion has reached the backend, and takes effect in the cache before the pruner continues.
    until("the eviction", async || api.reason(&secret).await == pb::Reason::NotFound).await;
}
