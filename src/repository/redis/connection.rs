//! Connections to Redis: a server, a Sentinel set or a Cluster.

mod inspection;
mod primary;
mod scripts;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::ClientLike as _;
use fred::types::config::Config;
use futures_util::stream::BoxStream;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::RedisOptions;
use super::error::{from_fred, from_start, was_not_run};
use crate::redis::{Probe, Watch, addresses, client, cluster_problem, config, wake_ups};
use crate::repository::{ErrorKind, RepositoryError, Result};

pub(super) use inspection::ALLOWS_STALE_READS;

/// Delay before a command that was not run is sent again.
const RETRY_DELAY: Duration = Duration::from_millis(20);
/// Connections to Redis. Changes wait for replicas on their own connections, so reads, which share one
/// connection, never wait for them. Clones share the connections.
#[derive(Clone)]
pub(super) struct Connection {
    reads: Client,
    /// Each connection serves some of the shards. A change that waits therefore delays few others, and
    /// changes of one key stay in order.
    changes: Arc<[Client]>,
    /// The addresses of the servers, without credentials.
    addresses: String,
    config: Config,
    timeout: Duration,
    min_replicas_ack: u32,
    /// The time of the last reconnection that looked for the primary.
    last_search: Arc<Mutex<Option<Instant>>>,
    /// Dropped with the last clone.
    watch: Option<Arc<Watch>>,
}

impl Connection {
    /// Connects to the server of `url`.
    ///
    /// # Errors
    /// [`ErrorKind::Unusable`] if the URL or a file can't be used, or the user lacks a permission. Otherwise the classified error of the
    /// connection. Errors contain no part of the URL.
    pub(super) async fn open(url: &str, options: &RedisOptions) -> Result<Self> {
        let config = config(url, &options.files)?;
        let mut connection = Self {
            addresses: addresses(&config.server),
            reads: client(config.clone(), options.timeout)?,
            changes: (0..options.change_connections.max(1))
                .map(|_| client(config.clone(), options.timeout))
                .collect::<std::result::Result<_, _>>()?,
            config,
            timeout: options.timeout,
            min_replicas_ack: options.min_replicas_ack,
            last_search: Arc::default(),
            watch: None,
        };
        let mut connected = Vec::new();
        for client in connection.all() {
            match client.init().await {
                Ok(task) => connected.push((client.clone(), task)),
                Err(error) => return Err(connection.explain(from_start(error)).await),
            }
        }
        connection.watch = Some(Arc::new(Watch::start(connected, options.timeout)));
        Ok(connection)
    }

    /// Returns why the clients can't start, if that can be determined, or else `error`, which is fred's. On a
    /// Cluster, that error does not name the node that can't be reached.
    async fn explain(&self, error: RepositoryError) -> RepositoryError {
        if !matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) {
            return error;
        }
        let problem = Box::pin(cluster_problem(&self.config, self.timeout)).await;
        problem.map_or(error, RepositoryError::from)
    }

    /// Opens a connection that determines permissions.
    pub(super) async fn probe(&self) -> std::result::Result<Probe, fred::error::Error> {
        Probe::connect(&self.config, self.timeout).await
    }

    fn all(&self) -> impl Iterator<Item = &Client> {
        std::iter::once(&self.reads).chain(self.changes.iter())
    }

    /// Runs commands that are idempotent. Retries them while a slot moves to another node.
    pub(super) async fn read<T, F>(&self, read: impl Fn(Client) -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, fred::error::Error>>,
    {
        self.repeated(|| read(self.reads.clone())).await.map_err(from_fred)
    }

    /// Runs `run`, and repeats it while it certainly was not run, until the timeout.
    async fn repeated<T, F>(&self, run: impl Fn() -> F) -> std::result::Result<T, fred::error::Error>
    where
        F: Future<Output = std::result::Result<T, fred::error::Error>>,
    {
        let began = Instant::now();
        loop {
            match run().await {
                Err(error) if was_not_run(&error) && began.elapsed() < self.timeout => {
                    tokio::time::sleep(RETRY_DELAY).await;
                }
                outcome => break outcome,
            }
        }
    }

    /// Returns whether servers are found through Sentinel.
    pub(super) fn has_sentinel(&self) -> bool {
        self.config.server.is_sentinel()
    }

    /// Returns whether changes wait for the confirmation of replicas.
    pub(super) fn waits_for_replicas(&self) -> bool {
        self.min_replicas_ack > 0
    }

    /// Returns whether keys are distributed over several servers.
    pub(super) fn is_clustered(&self) -> bool {
        self.reads.is_clustered()
    }

    /// Returns a stream that yields after messages in `channel`, and when messages may have been lost.
    pub(super) fn wake_ups(&self, channel: String) -> BoxStream<'static, ()> {
        wake_ups(&self.config, self.timeout, channel)
    }

    /// Closes all connections. Returns the first error.
    pub(super) async fn close(&self) -> Result<()> {
        let mut outcome = Ok(());
        for client in self.all() {
            outcome = outcome.and(client.quit().await.map_err(from_fred));
        }
        outcome
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.addresses)
    }
}

/// fred's own `Debug` shows the password.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({})", self.addresses)
    }
}
