//! Connections to Redis: a server, a Sentinel set or a Cluster.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fred::bytes_utils::Str;
use fred::clients::{Client, Pipeline};
use fred::interfaces::{
    ClientLike, ClusterInterface as _, KeysInterface as _, LuaInterface as _, ServerInterface as _,
};
use fred::prelude::FromValue;
use fred::types::config::{Config, Options, Server};
use fred::types::scripts::Script;
use fred::types::{ClusterHash, CustomCommand, InfoKind, Key, Value};
use fred::util::redis_keyslot;
use futures_util::future::join_all;
use futures_util::stream::BoxStream;
use prost::bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::RedisOptions;
use super::error::{from_fred, from_start, is_read_only, was_not_run};
use super::keyspace::Shard;
use crate::redis::{Watch, client, config, place, wakes};
use crate::repository::{ErrorKind, RepositoryError, Result};

/// Delay before a command that was not run is sent again.
const RETRY_DELAY: Duration = Duration::from_millis(20);
/// Minimum time between reconnections that look for the primary.
const SEARCH_INTERVAL: Duration = Duration::from_millis(500);

/// Returns the command that reads a server's role.
fn role() -> CustomCommand {
    CustomCommand::new_static("ROLE", ClusterHash::Random, false)
}

/// The ways to run a script.
#[derive(Clone, Copy, Debug)]
enum Evaluation {
    ByHash,
    ByText,
}

impl Evaluation {
    /// Returns the command and the form in which it takes `script`.
    fn of(self, script: &Script) -> (&'static str, Str) {
        match self {
            Self::ByHash => ("EVALSHA", script.sha1().clone()),
            Self::ByText => ("EVAL", script.lua().cloned().unwrap_or_default()),
        }
    }
}

/// Connections to Redis. Changes wait for replicas on their own connections, so reads, which share one
/// connection, never wait for them. Clones share the connections.
#[derive(Clone)]
pub(super) struct Connection {
    reads: Client,
    /// Each connection serves some of the shards. A change that waits therefore delays few others, and
    /// changes of one key stay in order.
    changes: Arc<[Client]>,
    place: String,
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
    /// [`ErrorKind::Refused`] if the URL or a file can't be used. Otherwise the classified error of the
    /// connection. Errors contain no part of the URL.
    pub(super) async fn open(url: &str, options: &RedisOptions) -> Result<Self> {
        let config = config(url, &options.files)?;
        let mut connection = Self {
            place: place(&config.server),
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
            connected.push((client.clone(), client.init().await.map_err(from_start)?));
        }
        connection.watch = Some(Arc::new(Watch::start(connected, options.timeout)));
        Ok(connection)
    }

    fn all(&self) -> impl Iterator<Item = &Client> {
        std::iter::once(&self.reads).chain(self.changes.iter())
    }

    fn for_changes_of(&self, shard: Shard) -> &Client {
        &self.changes[usize::from(shard.number()) % self.changes.len()]
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

    /// Returns whether keys are distributed over several servers.
    pub(super) fn is_clustered(&self) -> bool {
        self.reads.is_clustered()
    }

    /// Returns a stream that yields after messages in `channel`, and when messages may have been lost.
    pub(super) fn wakes(&self, channel: String) -> BoxStream<'static, ()> {
        wakes(&self.config, self.timeout, channel)
    }

    /// Returns the output of `INFO` and the settings of the server, or of each primary of a cluster.
    pub(super) async fn describe(&self) -> Result<Vec<(String, HashMap<String, String>)>> {
        if !self.is_clustered() {
            let info: String = self.reads.info(None).await.map_err(from_fred)?;
            return Ok(vec![(info, settings(&self.reads).await)]);
        }
        let mut told = Vec::new();
        for primary in self.primaries() {
            let node = self.reads.with_cluster_node(primary);
            let info: String = node.info(None).await.map_err(from_fred)?;
            told.push((info, settings(&node).await));
        }
        Ok(told)
    }

    /// Returns the primaries of a cluster.
    fn primaries(&self) -> Vec<Server> {
        let state = self.reads.cached_cluster_state();
        state.map(|state| state.unique_primary_nodes()).unwrap_or_default()
    }

    /// Returns the output of `INFO memory`: of the server, or of each primary of a cluster.
    pub(super) async fn memory(&self) -> Result<Vec<String>> {
        if !self.is_clustered() {
            return Ok(vec![self.reads.info(Some(InfoKind::Memory)).await.map_err(from_fred)?]);
        }
        let asked = self.primaries().into_iter().map(|primary| async move {
            self.reads.with_cluster_node(primary).info::<String>(Some(InfoKind::Memory)).await
        });
        // Nodes that are down are reported elsewhere.
        Ok(join_all(asked).await.into_iter().flatten().collect())
    }

    /// Runs a script by its text, and returns its response as strings.
    pub(super) async fn try_out(
        &self,
        script: &Script,
        keys: Vec<Key>,
    ) -> std::result::Result<Vec<String>, fred::error::Error> {
        let (_, text) = Evaluation::ByText.of(script);
        self.reads.eval(text, keys, Vec::<Value>::new()).await
    }

    /// Runs a script that changes keys. It returns revisions, or a word that states why nothing was changed.
    /// A change is acknowledged once enough replicas have it.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] if too few replicas confirmed the change before the timeout. The change was
    /// made nevertheless. Other errors are those of [`from_fred`].
    pub(super) async fn change(
        &self,
        shard: Shard,
        script: &Script,
        keys: Vec<Key>,
        arguments: Vec<Value>,
    ) -> Result<Vec<String>> {
        let changed = self.repeated(|| {
            self.by_hash_or_text(|command| {
                self.change_and_wait(shard, command.of(script), keys.clone(), arguments.clone())
            })
        });
        let (answer, confirmed) = changed.await.map_err(from_fred)?;
        let is_change = answer.iter().all(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        if is_change && confirmed < i64::from(self.min_replicas_ack) {
            return Err(RepositoryError::new(
                ErrorKind::Unavailable,
                "too few Redis replicas acknowledged the change",
            ));
        }
        Ok(answer)
    }

    /// Sends the script and the `WAIT` for its replicas together on one connection. On another connection,
    /// `WAIT` would not cover the change and would return at once.
    ///
    /// A change whose connection broke may have been made. It is not sent again, because the caller has to
    /// determine the outcome.
    async fn change_and_wait(
        &self,
        shard: Shard,
        (command, script): (&'static str, Str),
        keys: Vec<Key>,
        arguments: Vec<Value>,
    ) -> std::result::Result<(Vec<String>, i64), fred::error::Error> {
        let slot = keys.first().map(Key::cluster_hash).filter(|_| self.is_clustered());
        // Without a limit of attempts, a client that reconnects sends commands again that were in flight.
        let to_its_node = Options {
            cluster_hash: slot.map(ClusterHash::Custom),
            fail_fast: true,
            max_attempts: Some(1),
            ..Options::default()
        };
        let client = self.for_changes_of(shard).with_options(&to_its_node);
        let hash = slot.map_or(ClusterHash::Random, ClusterHash::Custom);
        let mut all = vec![Value::from(script), Value::from(i64::try_from(keys.len()).unwrap_or(i64::MAX))];
        all.extend(keys.iter().map(|key| Value::from(key.as_bytes())));
        all.extend(arguments);
        // fred's pipelines have no functions for scripts.
        let command = CustomCommand::new_static(command, hash, false);
        if self.min_replicas_ack == 0 {
            return Ok((client.custom(command, all).await?, 0));
        }
        let pipeline = Pipeline::from(client);
        pipeline.custom::<(), _>(command, all).await?;
        let millis = i64::try_from(self.timeout.as_millis() / 2).unwrap_or(i64::MAX).max(1);
        pipeline.wait::<()>(self.min_replicas_ack.into(), millis).await?;
        let mut answers = pipeline.try_all::<Value>().await.into_iter();
        let mut next = || answers.next().unwrap_or_else(|| Err(fred::error::Error::new_canceled()));
        let (answer, confirmed) = (next()?, next()?);
        Ok((answer.convert()?, confirmed.convert()?))
    }

    /// Runs a script that changes nothing.
    pub(super) async fn ask<T: FromValue>(&self, script: &Script, keys: Vec<Key>) -> Result<T> {
        self.evaluate(&self.reads, script, keys, Vec::new()).await
    }

    /// Runs a script whose changes may be lost in a failover.
    pub(super) async fn note(&self, script: &Script, keys: Vec<Key>, arguments: Vec<Value>) -> Result<()> {
        self.evaluate::<i64>(&self.reads, script, keys, arguments).await.map(drop)
    }

    async fn evaluate<T: FromValue>(
        &self,
        client: &Client,
        script: &Script,
        keys: Vec<Key>,
        arguments: Vec<Value>,
    ) -> Result<T> {
        let evaluate = |command: Evaluation| {
            let (keys, arguments) = (keys.clone(), arguments.clone());
            async move {
                let (_, script) = command.of(script);
                match command {
                    Evaluation::ByHash => client.evalsha(script, keys, arguments).await,
                    Evaluation::ByText => client.eval(script, keys, arguments).await,
                }
            }
        };
        self.repeated(|| self.by_hash_or_text(evaluate)).await.map_err(from_fred)
    }

    /// Runs a script by its hash. If the server does not have the script, for example after a failover, runs
    /// it by its text, which loads it. Loading it with a separate command would need all nodes of a cluster.
    async fn by_hash_or_text<T, F>(
        &self,
        evaluate: impl Fn(Evaluation) -> F,
    ) -> std::result::Result<T, fred::error::Error>
    where
        F: Future<Output = std::result::Result<T, fred::error::Error>>,
    {
        let mut outcome = evaluate(Evaluation::ByHash).await;
        if outcome.as_ref().is_err_and(|error| error.details().starts_with("NOSCRIPT")) {
            outcome = evaluate(Evaluation::ByText).await;
        }
        if outcome.as_ref().is_err_and(is_read_only) {
            self.look_for_the_primary().await;
        }
        outcome
    }

    /// Fails if the server is not a primary. A replica answers reads with old data, so the server's role is
    /// read. Nodes of a cluster redirect reads to the primary by themselves.
    pub(super) async fn check_role(&self) -> Result<()> {
        if self.is_clustered() {
            return Ok(());
        }
        let role = self.reads.custom(role(), Vec::<Value>::new()).await.map_err(from_fred)?;
        self.require_primary(role).await
    }

    /// Reads the values of `names`, which are in one slot, from the primary. The response of a replica must
    /// not be used, so the server's role is read last in the same round trip. Nodes of a cluster redirect
    /// reads to the primary by themselves.
    pub(super) async fn read_primary(&self, names: Vec<String>) -> Result<Vec<Option<Bytes>>> {
        if self.is_clustered() {
            let values = self.repeated(|| async {
                match self.reads.mget(names.clone()).await {
                    Err(error) if was_not_run(&error) => self.read_moving(names.clone()).await,
                    values => values,
                }
            });
            return values.await.map_err(from_fred);
        }
        let pipeline = self.reads.pipeline();
        pipeline.mget::<(), _>(names).await.map_err(from_fred)?;
        pipeline.custom::<(), _>(role(), Vec::<Value>::new()).await.map_err(from_fred)?;
        let (values, role): (Vec<Option<Bytes>>, Vec<Value>) = pipeline.all().await.map_err(from_fred)?;
        self.require_primary(role).await?;
        Ok(values)
    }

    /// Reads the values of `names` while their slot moves to another node. Values that have left the old node
    /// are read from the new one.
    async fn read_moving(
        &self,
        names: Vec<String>,
    ) -> std::result::Result<Vec<Option<Bytes>>, fred::error::Error> {
        let mut values = Vec::with_capacity(names.len());
        for name in names {
            let slot = redis_keyslot(name.as_bytes());
            values.push(match self.reads.get(name.clone()).await {
                Err(error) if was_not_run(&error) => {
                    let Some(target) = self.target_of(slot).await else { return Err(error) };
                    let at_target = Options { cluster_node: Some(target), ..Options::default() };
                    let pipeline = Pipeline::from(self.reads.with_options(&at_target));
                    let asking = CustomCommand::new_static("ASKING", ClusterHash::Custom(slot), false);
                    pipeline.custom::<(), _>(asking, Vec::<Value>::new()).await?;
                    pipeline.get::<(), _>(name).await?;
                    let (_, value): (Value, Option<Bytes>) = pipeline.all().await?;
                    value
                }
                value => value?,
            });
        }
        Ok(values)
    }

    /// Returns the node to which a slot moves.
    async fn target_of(&self, slot: u16) -> Option<Server> {
        let asked = self.primaries().into_iter().map(|primary| async move {
            let nodes: String = self.reads.with_cluster_node(primary.clone()).cluster_nodes().await.ok()?;
            // A node only lists the slots that it imports itself.
            nodes.contains(&format!("[{slot}-<-")).then_some(primary)
        });
        join_all(asked).await.into_iter().flatten().next()
    }

    async fn require_primary(&self, role: Vec<Value>) -> Result<()> {
        if role.first().and_then(Value::as_str).as_deref() == Some("master") {
            return Ok(());
        }
        self.look_for_the_primary().await;
        Err(RepositoryError::new(ErrorKind::Unavailable, "the server is a replica, and not the primary"))
    }

    /// Looks for the primary by reconnecting: Sentinel, or the name of the server, may lead to another
    /// server. If that fails, fred continues in the background. Of several concurrent calls, only one
    /// reconnects, and at most once per [`SEARCH_INTERVAL`], so that connections can settle.
    async fn look_for_the_primary(&self) {
        let Ok(mut last) = self.last_search.try_lock() else { return };
        if last.is_some_and(|last| last.elapsed() < SEARCH_INTERVAL) {
            return;
        }
        // The caller already has its error. Bound the reconnection by one command timeout.
        let reconnections = join_all(self.all().map(ClientLike::force_reconnection));
        let _ = tokio::time::timeout(self.timeout, reconnections).await;
        *last = Some(Instant::now());
    }

    pub(super) async fn close(&self) -> Result<()> {
        for client in self.all() {
            client.quit().await.map_err(from_fred)?;
        }
        Ok(())
    }
}

/// Returns the settings that determine which data may be lost or served stale. Settings that the server does
/// not return, as with managed services, are missing.
async fn settings(client: &impl ClientLike) -> HashMap<String, String> {
    let config = CustomCommand::new_static("CONFIG", ClusterHash::Random, false);
    let mut settings = HashMap::new();
    for name in ["save", "appendfsync", "min-replicas-to-write", ALLOWS_STALE_READS] {
        let arguments: Vec<Value> = vec!["GET".into(), name.into()];
        let answer: std::result::Result<Vec<String>, _> = client.custom(config.clone(), arguments).await;
        if let Ok([name, value]) = answer.as_deref() {
            settings.insert(name.clone(), value.clone());
        }
    }
    settings
}

/// The setting by which a node that is cut off from its cluster continues to answer reads.
pub(super) const ALLOWS_STALE_READS: &str = "cluster-allow-reads-when-down";

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)
    }
}

/// fred's own `Debug` shows the password.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({})", self.place)
    }
}
