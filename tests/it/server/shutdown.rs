//! Tests of the order of the steps of a shutdown, as the backend, a client and a Redis cache observe them.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use keyvouch::config::{HumanDuration, StoreUrl};
use keyvouch::conformance::api::new_key;
use keyvouch::domain::{
    ApiKey, ChangeContext, ChangeId, KeyFilter, KeyHash, KeyId, OwnerId, Revision, Timestamp,
};
use keyvouch::grpc::pb;
use keyvouch::repository::{
    AuditTrail, Backend, ChangeFeed, Changes, EventPageRequest, FeedPosition, KeyRepository, KeyStream,
    ListedEvent, MemoryRepository, RecentChanges, Result, UsageStore,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::redis_servers::{Redis, next_prefix, shared_url};
use crate::support::{TestServer, config, until};

/// A duration that no test waits for.
const NEVER: HumanDuration = HumanDuration(Duration::from_hours(1));

/// What was observed, in order.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<&'static str>>>);

impl Log {
    fn note(&self, event: &'static str) {
        self.0.lock().unwrap().push(event);
    }

    fn events(&self) -> Vec<&'static str> {
        self.0.lock().unwrap().clone()
    }
}

/// Notes when a call is dropped or has returned.
struct OnDrop<'l>(&'l Log, &'static str);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.note(self.1);
    }
}

/// A backend that notes what a shutdown does. Its pruning of events never returns, so that stopping the event
/// pruner can be observed.
#[derive(Clone, Debug)]
struct Recording {
    inner: MemoryRepository,
    log: Log,
    /// Whether lookups by hash wait.
    holds_lookups: watch::Sender<bool>,
    /// Whether writes of usage never return.
    hangs_on_usage: bool,
    /// Whether the next ping panics, and with it the health monitor.
    panics: Arc<AtomicBool>,
    /// Whether the connection of the Redis cache has ended.
    is_redis_closed: watch::Receiver<bool>,
}

impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recording")
    }
}

#[async_trait]
impl KeyRepository for Recording {
    async fn get_by_hash(&self, hash: &KeyHash) -> Result<Option<ApiKey>> {
        if *self.holds_lookups.borrow() {
            self.log.note("lookup began");
            self.holds_lookups.subscribe().wait_for(|holds| !holds).await.unwrap();
            self.log.note("lookup returned");
        }
        self.inner.get_by_hash(hash).await
    }

    async fn get(&self, id: KeyId) -> Result<Option<ApiKey>> {
        self.inner.get(id).await
    }

    async fn create(&self, key: ApiKey, context: &ChangeContext) -> Result<ApiKey> {
        self.inner.create(key, context).await
    }

    async fn update(&self, key: ApiKey, expected: Revision, context: &ChangeContext) -> Result<ApiKey> {
        self.inner.update(key, expected, context).await
    }

    async fn delete(&self, id: KeyId, context: &ChangeContext) -> Result<ChangeId> {
        self.inner.delete(id, context).await
    }

    fn list_by_owner(&self, owner: &OwnerId, filter: &KeyFilter) -> KeyStream {
        self.inner.list_by_owner(owner, filter)
    }

    async fn ping(&self) -> Result<()> {
        assert!(!self.panics.load(Ordering::SeqCst), "the test requested it");
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        // Its end is observed some time after the server has closed it, but without a further step of the
        // server: nothing proceeds before this returns.
        let mut is_redis_closed = self.is_redis_closed.clone();
        let closed = is_redis_closed.wait_for(|closed| *closed);
        self.log.note(match tokio::time::timeout(Duration::from_secs(30), closed).await {
            Ok(_) => "Redis cache closed",
            Err(_) => "Redis cache open",
        });
        self.log.note("backend closed");
        Ok(())
    }
}

#[async_trait]
impl ChangeFeed for Recording {
    async fn changes(&self, after: Option<&FeedPosition>, limit: usize) -> Result<Changes> {
        self.inner.changes(after, limit).await
    }

    async fn recent_changes(&self, limit: usize) -> Result<RecentChanges> {
        self.inner.recent_changes(limit).await
    }
}

#[async_trait]
impl UsageStore for Recording {
    async fn record_usage(&self, used: &[(KeyId, Timestamp)]) -> Result<()> {
        self.log.note("usage write began");
        if self.hangs_on_usage {
            let _ended = OnDrop(&self.log, "usage write cancelled");
            std::future::pending::<()>().await;
        }
        self.inner.record_usage(used).await?;
        self.log.note("usage written");
        Ok(())
    }

    async fn usage(&self, ids: &[KeyId]) -> Result<Vec<Option<Timestamp>>> {
        self.inner.usage(ids).await
    }
}

#[async_trait]
impl AuditTrail for Recording {
    async fn list_events(&self, request: &EventPageRequest) -> Result<Vec<ListedEvent>> {
        self.inner.list_events(request).await
    }

    async fn prune_events(&self, _: Timestamp) -> Result<u64> {
        let _ended = OnDrop(&self.log, "event pruner stopped");
        std::future::pending().await
    }
}

impl From<Recording> for Backend {
    fn from(recording: Recording) -> Self {
        Self::complete(recording)
    }
}

/// A proxy in front of Redis that observes the connection of the cache.
#[derive(Debug)]
struct RedisProxy {
    url: String,
    prefix: String,
    /// Whether the cache is in use.
    is_used: watch::Receiver<bool>,
    /// Whether the connection of the cache has ended.
    is_closed: watch::Receiver<bool>,
}

/// The senders of what a proxy observes.
#[derive(Clone, Debug)]
struct Observed {
    used: watch::Sender<bool>,
    closed: watch::Sender<bool>,
}

impl RedisProxy {
    async fn start() -> Self {
        let server = shared_url(Redis::Alone).strip_prefix("redis://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let ((used, is_used), (closed, is_closed)) = (watch::channel(false), watch::channel(false));
        let (observed, prefix) = (Observed { used, closed }, next_prefix());
        let named = prefix.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.unwrap();
                tokio::spawn(relay(client, server, observed.clone(), named.clone()));
            }
        });
        Self { url, prefix, is_used, is_closed }
    }
}

/// Copies in both directions until the client closes the connection. The connection of the cache is the one
/// that sends names of entries, and does not subscribe to messages of other replicas.
async fn relay(client: TcpStream, server: TcpStream, observed: Observed, prefix: String) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let answers = tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
    let mut chunk = vec![0; 1 << 16];
    let (mut is_subscriber, mut is_cache) = (false, false);
    while let Ok(read @ 1..) = from_client.read(&mut chunk).await {
        let has =
            |word: &str| chunk[..read].windows(word.len()).any(|it| it.eq_ignore_ascii_case(word.as_bytes()));
        is_subscriber |= has("SUBSCRIBE");
        is_cache |= !is_subscriber && has(&prefix);
        observed.used.send_if_modified(|used| is_cache && !std::mem::replace(used, true));
        if to_server.write_all(&chunk[..read]).await.is_err() {
            break;
        }
    }
    observed.closed.send_if_modified(|closed| is_cache && !std::mem::replace(closed, true));
    answers.abort();
}

/// The reason of a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Signal,
    FailedTask,
}

/// Shuts a server down while a call is in flight. Returns what was observed, and how the server ended.
async fn shut_down(cause: Cause, hangs_on_usage: bool) -> (Vec<&'static str>, anyhow::Result<()>) {
    let (log, mut redis) = (Log::default(), RedisProxy::start().await);
    let store = Recording {
        inner: MemoryRepository::new(),
        log: log.clone(),
        holds_lookups: watch::Sender::new(false),
        hangs_on_usage,
        panics: Arc::default(),
        is_redis_closed: redis.is_closed.clone(),
    };
    let mut config = config();
    config.server.drain_timeout = NEVER;
    config.server.call_timeout = NEVER;
    config.usage.flush_interval = NEVER;
    config.cache.load_timeout = NEVER;
    config.cache.redis.url = StoreUrl::from(redis.url.clone());
    config.cache.redis.prefix.clone_from(&redis.prefix);
    let mut server = TestServer::start_with(store.clone(), &config).await;
    let api = server.api().await;
    let (_, secret) = api.create(new_key()).await;
    let mut health = HealthClient::new(server.channel().await);
    let mut statuses = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    until("health", async || statuses.message().await.unwrap().unwrap().status() == ServingStatus::Serving)
        .await;
    redis.is_used.wait_for(|used| *used).await.unwrap();

    store.holds_lookups.send_replace(true);
    let call = tokio::spawn(async move {
        // Caches don't answer a call that accepts no staleness.
        let max_staleness = Some(prost_types::Duration::default());
        let request = pb::ValidateRequest { secret, max_staleness, ..pb::ValidateRequest::default() };
        api.admin_validator().validate(request).await
    });
    until("the lookup", async || log.events() == ["lookup began"]).await;
    match cause {
        Cause::Signal => server.begin_stop(),
        Cause::FailedTask => store.panics.store(true, Ordering::SeqCst),
    }
    let status = statuses.message().await.unwrap().unwrap().status();
    assert_eq!(status, ServingStatus::NotServing, "before the stream ends");
    log.note("NOT_SERVING");
    statuses.message().await.unwrap_err();
    until("the end of listening", async || TcpStream::connect(server.address).await.is_err()).await;
    log.note("drain began");
    store.holds_lookups.send_replace(false);
    let verdict = call.await.unwrap().unwrap().into_inner();
    assert_eq!(verdict.reason(), pb::Reason::Valid);
    drop((statuses, health));
    let outcome = server.ended().await;
    (log.events(), outcome)
}

const DRAINED: [&str; 5] =
    ["lookup began", "NOT_SERVING", "drain began", "lookup returned", "event pruner stopped"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_steps_of_a_shutdown_follow_one_another() {
    let (events, outcome) = shut_down(Cause::Signal, false).await;
    outcome.unwrap();
    let closed = ["usage write began", "usage written", "Redis cache closed", "backend closed"];
    assert_eq!(events, [&DRAINED[..], &closed].concat());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_background_task_skips_no_step() {
    let (events, outcome) = shut_down(Cause::FailedTask, false).await;
    let error = format!("{:#}", outcome.unwrap_err());
    assert!(error.contains("background task \"health monitor\" failed"), "{error}");
    let closed = ["usage write began", "usage written", "Redis cache closed", "backend closed"];
    assert_eq!(events, [&DRAINED[..], &closed].concat());
}

/// The write is cancelled, and does not continue while the backend closes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_last_write_of_usage_that_hangs_ends_before_the_backend_closes() {
    let (events, outcome) = shut_down(Cause::Signal, true).await;
    outcome.unwrap();
    let closed = ["usage write began", "usage write cancelled", "Redis cache closed", "backend closed"];
    assert_eq!(events, [&DRAINED[..], &closed].concat());
}

#[tokio::test]
async fn calls_are_accepted_during_the_settle_delay() {
    let mut config = config();
    config.server.settle_delay = NEVER;
    let mut server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let (_, secret) = server.api().await.create(new_key()).await;
    let mut health = HealthClient::new(server.channel().await);
    let mut statuses = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    until("health", async || statuses.message().await.unwrap().unwrap().status() == ServingStatus::Serving)
        .await;
    server.begin_stop();
    assert_eq!(statuses.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert_eq!(server.api().await.reason(&secret).await, pb::Reason::Valid, "on a new connection");
}
