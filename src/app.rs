//! The composition root: builds a running server from its settings. It is the only module that chooses a
//! backend to serve.
//!
//! A server consists of parts, each in a file of its own:
//!
//! | part | responsibility |
//! |---|---|
//! | `listeners` | addresses and certificates |
//! | `access` | how callers authenticate |
//! | `store`, `storage` | the backend and its caches |
//! | `observability` | health and metrics |
//! | `services`, `serving` | the gRPC services, and the server as it serves and drains |
//! | `background`, `supervisor` | background tasks |
//! | `shutdown` | the steps of the shutdown |

mod access;
mod background;
mod health;
mod listeners;
mod observability;
mod readings;
mod reload;
mod services;
mod serving;
mod shutdown;
mod storage;
mod store;
mod supervisor;
#[cfg(test)]
mod tests;
mod token_file;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

pub use access::AdminAccess;
pub use store::open_sql;
pub use token_file::TOKEN_FILE;

pub use crate::server::ListenAddr;

use self::access::LoadedAccess;
use self::background::{Background, Pruners};
use self::health::HealthMonitor;
use self::listeners::{BoundAddresses, Certificates, Listeners};
use self::observability::Observability;
use self::serving::Serving;
use self::shutdown::Shutdown;
use self::storage::Storage;
use self::store::OpenedBackend;
use crate::cache::{CustomCache, RedisCache};
use crate::config::Settings;
use crate::domain::{BootClock, Clock, Entropy, Stopwatch, SystemClock, SystemEntropy};
use crate::repository::Backend;
use crate::server::{CallLayer, Clocks, Listener, Role, Server};
use crate::service::UsageRecorder;

/// A server that listens on its addresses and is ready to run.
#[derive(Debug)]
pub struct App {
    server: Server,
    background: Background,
    health: HealthMonitor,
    admin_access: AdminAccess,
    probes: Option<SocketAddr>,
    backend: Backend,
    redis_cache: Option<Arc<RedisCache>>,
    settle_delay: Duration,
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
    /// Prepares a server with the backend of the settings. It has to be called on the runtime that should
    /// drive the backend's connections.
    ///
    /// What can be wrong without the backend is checked first: certificates, tokens and addresses.
    /// Then the backend is opened, and its schema is migrated if that is allowed. Connections are refused
    /// until then, and wait until [`run`](Self::run) afterwards. Connections to Unix sockets wait from the
    /// beginning.
    ///
    /// # Errors
    /// Returns an error if a certificate or a token is not valid, if an address can't be bound, or
    /// if the backend can't be opened.
    pub async fn prepare(settings: &Settings, surroundings: Surroundings) -> Result<Self> {
        let entropy = Arc::clone(&surroundings.entropy);
        let opened = OpenedBackend::open(&settings.store, &entropy);
        Box::pin(Self::assemble(settings, surroundings, opened)).await
    }

    /// Prepares a server with a backend that the caller opened, such as a custom one. Otherwise it is like
    /// [`prepare`](Self::prepare).
    ///
    /// # Errors
    /// Returns an error if a certificate or a token is not valid, if an address can't be bound, or
    /// if the caches can't be set up.
    pub async fn with_backend(
        settings: &Settings,
        surroundings: Surroundings,
        backend: impl Into<Backend>,
    ) -> Result<Self> {
        let opened = OpenedBackend { backend: backend.into(), pools: None };
        Self::assemble(settings, surroundings, std::future::ready(Ok(opened))).await
    }

    /// Assembles the server. `opened` opens the backend, and is not polled before everything that does not
    /// need the backend has succeeded.
    async fn assemble(
        settings: &Settings,
        surroundings: Surroundings,
        opened: impl Future<Output = Result<OpenedBackend>>,
    ) -> Result<Self> {
        for warning in settings.warnings() {
            tracing::warn!("{warning}");
        }
        let certificates = Certificates::load(settings.server.tls.as_ref())?;
        let access = LoadedAccess::load(settings)?;
        let addresses = BoundAddresses::bind(&settings.server.listen, settings.telemetry.listen)?;

        let mut storage = Storage::build(opened.await?, &settings.cache.stack, &surroundings).await?;

        // Everything that can take long or fail is done, so waiting connections are accepted soon.
        let Listeners { listeners, probes } = addresses.listen()?;
        let access = access.establish(surroundings.entropy.as_ref())?;
        let (tls, certificates) = certificates.map(|it| (it.current, it.reloader)).unzip();
        let usage = Arc::new(UsageRecorder::new(storage.uncached.usage.clone()));
        let max_staleness = settings.cache.stack.max_staleness;
        let observability = Observability::new(&mut storage, &usage, tls.clone(), max_staleness);
        let services = services::build(settings, &surroundings, &storage, &usage, &access, &observability);
        let pruners = Pruners::new(settings, &storage, &surroundings);
        let Surroundings { clock, entropy, stopwatch, .. } = surroundings;

        let Observability { health, metrics, exposition } = observability;
        let stack = storage.stack;
        Ok(Self {
            server: Server {
                listeners,
                services,
                calls: CallLayer::new(
                    entropy.as_ref(),
                    settings.keys.clone(),
                    Arc::clone(&stopwatch),
                    settings.server.calls,
                    metrics.calls,
                )?,
                options: settings.server.options,
                tls,
                connections: metrics.connections,
                clocks: Clocks { clock, stopwatch: Arc::clone(&stopwatch) },
            },
            probes: probes.as_ref().and_then(|listener| listener.address().ok()),
            background: Background {
                health: health.clone(),
                follower: stack.follower,
                pruners,
                certificates,
                tokens: access.reloader,
                reload_interval: settings.reload_interval,
                reloads: metrics.reloads,
                probes: probes.map(|listener| (listener, exposition)),
                usage,
                flush_interval: settings.usage_flush_interval,
                stopwatch,
            },
            health,
            admin_access: access.admin,
            backend: stack.backend,
            redis_cache: stack.redis,
            settle_delay: settings.server.settle_delay,
        })
    }

    /// Returns the addresses of `Validator`, with the ports that were assigned.
    pub fn addresses(&self) -> impl Iterator<Item = &ListenAddr> + Clone {
        self.addresses_without(Role::KeyStore)
    }

    /// Returns the addresses of `KeyStore`, with the ports that were assigned.
    pub fn admin_addresses(&self) -> impl Iterator<Item = &ListenAddr> + Clone {
        self.addresses_without(Role::Validator)
    }

    fn addresses_without(&self, role: Role) -> impl Iterator<Item = &ListenAddr> + Clone {
        let listeners = self.server.listeners.iter();
        listeners.filter(move |listener| listener.role() != role).map(Listener::address)
    }

    /// Returns whether TCP connections are encrypted.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        self.server.tls.is_some()
    }

    /// Returns the address of metrics and probes, with the port that was assigned, or `None` if they are
    /// disabled.
    #[must_use]
    pub fn ops_address(&self) -> Option<SocketAddr> {
        self.probes
    }

    /// Returns the services, for calls without a connection.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn routes(&self) -> Result<tonic::service::Routes> {
        Ok(crate::server::routes(&self.server.services, Role::Both)?)
    }

    /// Returns the backend with the caches in front of it. Its `Display` implementation lists the layers.
    #[must_use]
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Returns how administrators authenticate.
    #[must_use]
    pub fn admin_access(&self) -> &AdminAccess {
        &self.admin_access
    }

    /// Serves until `shutdown` completes or a part of the server fails. Then shuts down in order, in both
    /// cases: reports that it is not serving, waits for the settle delay, completes calls in flight, stops
    /// background tasks, writes last uses, and closes the Redis cache and the backend.
    ///
    /// `shutdown` continues to be polled during a shutdown because of a failure.
    ///
    /// # Errors
    /// Returns an error if the server or one of its background tasks ended unexpectedly.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<()> {
        self.health.begin().await;
        let mut tasks = self.background.start();
        let mut server = Serving::start(self.server);

        let mut shutdown = std::pin::pin!(shutdown);
        let failure = tokio::select! {
            () = &mut shutdown => None,
            error = tasks.failed() => Some(error),
            error = server.failed() => Some(error),
        };

        let steps = Shutdown {
            health: self.health,
            settle_delay: self.settle_delay,
            server,
            tasks,
            redis_cache: self.redis_cache,
            backend: self.backend,
        };
        let Some(error) = failure else { return steps.run().await };
        tracing::error!(error = format!("{error:#}"), "a part of the server failed; shutting down");
        let mut steps = std::pin::pin!(steps.run());
        tokio::select! {
            drained = &mut steps => log_second_failure(drained),
            () = shutdown => log_second_failure(steps.await),
        }
        Err(error)
    }
}

/// Logs a failure during the shutdown because of another one, which is returned instead.
fn log_second_failure(drained: Result<()>) {
    if let Err(error) = drained {
        tracing::error!(error = format!("{error:#}"), "the server failed during the shutdown");
    }
}
