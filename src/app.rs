//! The composition root: builds a running server from its settings. It is the only module that chooses a
//! backend to serve.

mod admin;
mod health;
mod readings;
mod reload;
mod store;
mod tasks;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

pub use admin::{AdminDoor, TOKEN_FILE};
pub use store::open_sql;

pub use crate::server::ListenAddr;

use self::health::HealthMonitor;
use self::reload::Reloaded;
use self::store::OpenedBackend;
use self::tasks::Tasks;
use crate::cache::{CacheStack, CustomCache, FeedFollower, FeedHandle, RedisCache, StackOptions};
use crate::config::{Config, ServerConfig, TelemetryConfig};
use crate::domain::{BootClock, Clock, Entropy, Stopwatch, SystemClock, SystemEntropy};
use crate::grpc::pb;
use crate::grpc::{KeyStoreHandler, ValidatorHandler};
use crate::repository::{AuditTrail, Backend};
use crate::server::{
    CallLayer, CallLimits, Clocks, Listener, OpsListener, Role, Server, ServerOptions, Services, Tls,
};
use crate::service::{
    ChangeWatcher, EventPruner, KeyPruner, KeyStoreService, UsageRecorder, ValidatorService,
};
use crate::telemetry::{ConnectionMetrics, Exposition, Metrics, ReloadMetrics, error_chain};

/// Maximum time that the last flush of usage may delay the end of the process.
const LAST_FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// A server that is bound to its addresses and ready to run.
#[derive(Debug)]
pub struct App {
    listeners: Vec<Listener>,
    services: Services,
    calls: CallLayer,
    options: ServerOptions,
    tls: Option<watch::Receiver<Arc<Tls>>>,
    reloaded: Vec<Reloaded>,
    reload_interval: Duration,
    settle_delay: Duration,
    backend: Backend,
    feed: Option<FeedFollower>,
    redis_cache: Option<Arc<RedisCache>>,
    door: AdminDoor,
    usage: Arc<UsageRecorder>,
    flush_interval: Duration,
    pruner: Option<EventPruner>,
    key_pruner: Option<KeyPruner>,
    health: HealthMonitor,
    ops: Option<(OpsListener, Exposition)>,
    connections: ConnectionMetrics,
    clocks: Clocks,
    reloads: ReloadMetrics,
}

/// External dependencies of a server.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Source of the current time.
    pub clock: Arc<dyn Clock>,
    /// Source of random bytes.
    pub entropy: Arc<dyn Entropy>,
    /// Source of elapsed time, for measuring ages.
    pub stopwatch: Arc<dyn Stopwatch>,
    /// A cache of another kind than those in the settings.
    pub cache: Option<CustomCache>,
}

impl Default for Surroundings {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SystemEntropy),
            stopwatch: Arc::new(BootClock),
            cache: None,
        }
    }
}

impl App {
    /// Opens the backend, determines how administrators authenticate, and binds the addresses. It has to be
    /// called on the runtime that should drive the backend's connections.
    ///
    /// # Errors
    /// Returns an error if a setting is not valid, if the backend can't be opened, or if an address can't be
    /// bound.
    pub async fn prepare(config: &Config, surroundings: Surroundings) -> Result<Self> {
        config.check()?;
        let opened = OpenedBackend::open(&config.store, &surroundings.entropy).await?;
        Self::assemble(config, surroundings, opened).await
    }

    /// Prepares a server with a backend that the caller opened, such as a custom one. Otherwise it is like
    /// [`prepare`](Self::prepare).
    ///
    /// # Errors
    /// Returns an error if a setting is not valid, if the caches can't be set up, or if an address can't be
    /// bound.
    pub async fn with_backend(
        config: &Config,
        surroundings: Surroundings,
        backend: impl Into<Backend>,
    ) -> Result<Self> {
        config.check()?;
        let opened = OpenedBackend { backend: backend.into(), pools: None };
        Self::assemble(config, surroundings, opened).await
    }

    /// Assembles the server from settings that were checked.
    async fn assemble(config: &Config, surroundings: Surroundings, opened: OpenedBackend) -> Result<Self> {
        let door = AdminDoor::find(config, &surroundings.entropy)?;
        let listeners = bind(&config.server)?;
        let ops = bind_ops(&config.telemetry).await?;
        let Surroundings { clock, entropy, stopwatch, cache } = surroundings;
        let options = StackOptions { custom: cache, ..config.cache.stack_options(&config.feed) };
        // Background tasks run beside the backend's connections, and need no hop. They get the backend
        // without the caches.
        let (audit, uses) = (opened.backend.audit.clone(), opened.backend.usage.clone());
        let stack = CacheStack::build(opened.backend, &options, &entropy, &stopwatch);
        let stack = stack.await.context("can't put the caches in front of the store")?;
        warn_without_feed(&stack, config);
        let limits = CallLimits { max_calls: config.server.max_calls, timeout: config.server.call_timeout.0 };
        let mut reloaded = Vec::new();
        let (accepted, tokens) = door.accepted(config);
        if let Some(tokens) = tokens.filter(|_| !config.admin.tokens_file.as_os_str().is_empty()) {
            reloaded.push(Reloaded::Tokens(config.admin.clone(), tokens));
        }
        let tls = match config.server.tls.files()? {
            None => None,
            Some(files) => {
                let (sender, tls) = watch::channel(files.load()?);
                reloaded.push(Reloaded::Tls(files, sender));
                Some(tls)
            }
        };
        let CacheStack { backend, source, knowledge, follower, feed, has_caches, local, redis, breaker } =
            stack;
        let format = Arc::new(config.keys.format()?);
        let usage = Arc::new(UsageRecorder::new(uses));
        let max_staleness = has_caches.then_some(config.cache.max_staleness.0);
        let health = HealthMonitor::new(Arc::clone(&backend.keys), Arc::clone(&knowledge), max_staleness);
        let sources = readings::Sources {
            knowledge: Arc::clone(&knowledge),
            breaker,
            local,
            usage: Arc::clone(&usage),
            is_up: health.is_up(),
            pools: opened.pools,
            tls: tls.clone(),
        };
        let (metrics, exposition) = Metrics::new(
            &methods(),
            feed.as_ref().map(FeedHandle::propagation),
            Box::new(move || sources.read()),
        );
        let ops = ops.map(|listener| (listener, exposition));
        let calls = CallLayer::new(entropy.as_ref(), Arc::clone(&stopwatch), limits, metrics.calls.clone())?;
        let validator = ValidatorService::new(
            source,
            Arc::clone(&knowledge),
            config.cache.max_staleness.0,
            Arc::clone(&format),
            Arc::clone(&clock),
            Arc::clone(&usage),
        )
        .with_metrics(metrics.validations.clone());
        let watcher = ChangeWatcher::new(backend.feed.clone(), feed, knowledge);
        let (pruner, key_pruner) = pruners(config, audit, &backend, &clock);
        let clocks = Clocks { clock: Arc::clone(&clock), stopwatch };
        let key_store = KeyStoreService::new(&backend, format, clock, entropy);
        let (key_store_auth, validator_auth) = admin::authenticators(config, accepted, &validator)?;
        let min_staleness = config.cache.min_staleness.0;
        let services = Services {
            validator: ValidatorHandler::new(validator, watcher, validator_auth.clone(), min_staleness),
            key_store: KeyStoreHandler::new(key_store, Arc::clone(&clocks.stopwatch))
                .with_rejected_imports(metrics.rejected_imports),
            key_store_auth,
            validator_auth,
            validator_access: config.validator.access,
            health: health.reporter(),
            has_reflection: config.server.reflection,
        };
        let flush_interval = config.usage.flush_interval.0;
        Ok(Self {
            listeners,
            services,
            calls,
            options: server_options(&config.server),
            tls,
            reloaded,
            reload_interval: config.reload.interval.0,
            settle_delay: config.server.settle_delay.0,
            backend,
            feed: follower,
            redis_cache: redis,
            door,
            usage,
            flush_interval,
            pruner,
            key_pruner,
            health,
            ops,
            connections: metrics.connections,
            clocks,
            reloads: metrics.reloads,
        })
    }

    /// Returns the addresses of `Validator`, with the ports that were assigned.
    pub fn addresses(&self) -> impl Iterator<Item = &ListenAddr> + Clone {
        self.listeners.iter().filter(|listener| listener.role() != Role::KeyStore).map(Listener::address)
    }

    /// Returns the addresses of `KeyStore`, with the ports that were assigned.
    pub fn admin_addresses(&self) -> impl Iterator<Item = &ListenAddr> + Clone {
        self.listeners.iter().filter(|listener| listener.role() != Role::Validator).map(Listener::address)
    }

    /// Returns whether TCP connections are encrypted.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Returns the address of metrics and probes, with the port that was assigned, or `None` if they are
    /// disabled.
    #[must_use]
    pub fn ops_address(&self) -> Option<SocketAddr> {
        self.ops.as_ref().and_then(|(listener, _)| listener.address().ok())
    }

    /// Returns the services, for calls without a connection.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn routes(&self) -> Result<tonic::service::Routes> {
        Ok(crate::server::routes(&self.services, Role::Both)?)
    }

    /// Returns the backend with the caches in front of it. Its `Display` implementation lists the layers.
    #[must_use]
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Returns how administrators authenticate.
    #[must_use]
    pub fn door(&self) -> &AdminDoor {
        &self.door
    }

    /// Serves until `shutdown` completes, then shuts down in order: reports that it is not serving, completes
    /// calls in flight, writes last uses, and closes the backend's connections.
    ///
    /// # Errors
    /// Returns an error if the server or one of its background tasks ends unexpectedly.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<()> {
        self.health.begin().await;
        let mut tasks = Tasks::default();
        let monitor = self.health.clone();
        tasks.spawn("watches the backend", async move { monitor.watch().await });
        if let Some(follower) = self.feed {
            tasks.spawn("follows changes of keys", follower.run());
        }
        if let Some(pruner) = self.pruner {
            tasks.spawn("deletes old events", async move { pruner.run().await });
        }
        if let Some(pruner) = self.key_pruner {
            tasks.spawn("deletes expired keys", async move { pruner.run().await });
        }
        for reloaded in self.reloaded {
            tasks.spawn(
                "reloads certificates and tokens",
                reloaded.run(self.reload_interval, self.reloads.clone()),
            );
        }
        if let Some((listener, exposition)) = self.ops {
            let (fitness, stopwatch) = (self.health.fitness(), Arc::clone(&self.clocks.stopwatch));
            tasks.spawn("answers probes", async move {
                match listener.serve(fitness, exposition, stopwatch).await {}
            });
        }
        let mut flusher = Flusher::start(self.usage, self.flush_interval);

        let health = self.health.clone();
        let settle_delay = self.settle_delay;
        let shutdown = async move {
            shutdown.await;
            health.stop().await;
            tokio::time::sleep(settle_delay).await;
        };
        let server = Server {
            listeners: self.listeners,
            services: self.services,
            calls: self.calls,
            options: self.options,
            tls: self.tls,
            connections: self.connections,
            clocks: self.clocks,
        };
        let outcome = tokio::select! {
            served = server.serve(shutdown) => served.context("the server failed"),
            error = tasks.failed() => Err(error),
            error = flusher.failed() => Err(error),
        };

        tasks.stop().await;
        flusher.stop().await;
        if let Some(redis) = self.redis_cache {
            redis.close().await;
        }
        if let Err(error) = self.backend.close().await {
            tracing::warn!(error = %error_chain(&error), "the backend was not closed cleanly");
        }
        outcome
    }
}

/// Writes last uses periodically, and the remaining ones when the server shuts down.
struct Flusher {
    task: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

impl Flusher {
    fn start(usage: Arc<UsageRecorder>, interval: Duration) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let stop = async {
                // A dropped sender stops the task as well.
                let _ = stopped.await;
            };
            usage.flush_until(interval, stop).await;
        });
        Self { task, stop }
    }

    /// Completes when the task ends or panics, which is unexpected.
    async fn failed(&mut self) -> anyhow::Error {
        let problem = "the task that records last uses failed";
        match (&mut self.task).await {
            Ok(()) => anyhow!(problem),
            Err(panicked) => anyhow::Error::from(panicked).context(problem),
        }
    }

    /// Writes the remaining uses, within a time limit.
    async fn stop(self) {
        drop(self.stop);
        if !self.task.is_finished() && tokio::time::timeout(LAST_FLUSH_TIMEOUT, self.task).await.is_err() {
            tracing::warn!("the last uses of keys were not recorded in time");
        }
    }
}

fn pruners(
    config: &Config,
    audit: Option<Arc<dyn AuditTrail>>,
    backend: &Backend,
    clock: &Arc<dyn Clock>,
) -> (Option<EventPruner>, Option<KeyPruner>) {
    let events = audit.zip(config.events.retention());
    let events = events.map(|(audit, retention)| EventPruner::new(audit, Arc::clone(clock), retention));
    let keys = config.prune.expired_for().map(|expired_for| {
        KeyPruner::new(Arc::clone(&backend.keys), Arc::clone(clock), expired_for, config.prune.interval.0)
    });
    (events, keys)
}

fn warn_without_feed(stack: &CacheStack, config: &Config) {
    if stack.feed.is_none() && stack.has_caches {
        tracing::warn!(
            ttl = ?config.cache.ttl.0,
            "this store has no change feed: a revocation by another replica can take as long as cache.ttl to be seen"
        );
    }
}

fn bind(config: &ServerConfig) -> Result<Vec<Listener>> {
    let bound = config.addresses()?.into_iter().map(|(address, role, setting)| {
        Listener::bind(&address, role).with_context(|| format!("can't listen on {address} ({setting})"))
    });
    bound.collect()
}

/// Returns the paths of all served methods.
fn methods() -> Vec<String> {
    let descriptors = [
        pb::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    descriptors.into_iter().flat_map(pb::paths).collect()
}

fn server_options(config: &ServerConfig) -> ServerOptions {
    let unless_zero = |duration: Duration| (!duration.is_zero()).then_some(duration);
    ServerOptions {
        workers: config.workers,
        max_connections: config.max_connections,
        max_connections_per_peer: config.max_connections_per_peer,
        max_streams_per_connection: config.max_streams_per_connection,
        max_streams: config.max_streams,
        max_connection_age: unless_zero(config.max_connection_age.0),
        idle_timeout: unless_zero(config.idle_timeout.0),
        handshake_timeout: config.handshake_timeout.0,
        drain_timeout: config.drain_timeout.0,
    }
}

async fn bind_ops(config: &TelemetryConfig) -> Result<Option<OpsListener>> {
    let Some(address) = config.address()? else { return Ok(None) };
    let listener = OpsListener::bind(address).await;
    let listener = listener.with_context(|| format!("can't listen on {address} (telemetry.listen)"))?;
    Ok(Some(listener))
}
