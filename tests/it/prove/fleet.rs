//! Three replicas as processes, the backend and the cache that they use, and a proxy on each connection.

use rustix::process::Signal;
use std::sync::Arc;
use std::time::Duration;

use keyvouch::conformance::api::Api;
use keyvouch::repository::{ErrorKind, RepositoryError};
use tokio::sync::Mutex;
use tonic::transport::{Channel, Endpoint};

use super::BOUND;
use super::proxy::{Fault, Proxy};
use super::schedule::Random;
use crate::databases::{Kind, Server};
use crate::process::program;
use crate::redis_servers::{Redis, RedisServers, cli, free_port};
use crate::support::TOKEN;

pub(super) const REPLICAS: usize = 3;

/// The backend and the cache of the replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stack {
    PostgresAndRedis,
    MariaDbAndRedis,
    /// Without Redis, replicas receive no notifications and only poll.
    MariaDbAlone,
    Redis,
}

#[derive(Clone)]
pub(super) struct Fleet(Arc<Parts>);

struct Parts {
    replicas: Vec<Replica>,
    /// The cache, which may lose all its data at any time.
    cache: Option<RedisServers>,
    database: Option<Mutex<Server>>,
    _store: Option<RedisServers>,
}

struct Replica {
    home: Arc<program::Home>,
    settings: Vec<String>,
    server: Mutex<Option<program::Server>>,
    proxies: Vec<Proxy>,
    api: Api,
}

impl Fleet {
    pub(super) async fn start(stack: Stack) -> Self {
        let database = match stack {
            Stack::PostgresAndRedis => Some(Kind::Postgres.start(None)),
            Stack::MariaDbAndRedis | Stack::MariaDbAlone => Some(Kind::MariaDb.start(None)),
            Stack::Redis => None,
        };
        let cache = matches!(stack, Stack::PostgresAndRedis | Stack::MariaDbAndRedis)
            .then(|| Redis::Alone.start(&[]));
        let store = (stack == Stack::Redis).then(|| Redis::Alone.start(&["--appendonly", "yes"]));
        let url = match (&database, &store) {
            (Some(database), _) => database.database().await,
            (None, store) => store.as_ref().unwrap().url.clone(),
        };
        let mut replicas = Vec::new();
        for number in 0..REPLICAS {
            let replica = Replica::start(&url, cache.as_ref().map(|cache| cache.url.as_str()), number == 0);
            replicas.push(replica.await);
        }
        Self(Arc::new(Parts { replicas, cache, database: database.map(Mutex::new), _store: store }))
    }

    pub(super) fn api(&self, replica: usize) -> &Api {
        &self.0.replicas[replica].api
    }

    /// Copies the current state of the database.
    pub(super) async fn copy_database(&self) {
        self.with_database(Server::keep_a_copy).await;
    }

    /// Kills the database, as a power loss would.
    pub(super) async fn kill_database(&self) {
        self.with_database(|server| server.kill()).await;
    }

    /// Starts the copy in place of the database.
    pub(super) async fn start_copy(&self) {
        self.with_database(Server::start_the_copy).await;
    }

    async fn with_database(&self, act: impl FnOnce(&mut Server)) {
        let mut server = self.0.database.as_ref().unwrap().lock().await;
        tokio::task::block_in_place(|| act(&mut server));
    }

    /// Returns the entries of the replicas' logs that show a defect: panics, and failures of the backend that are
    /// not outages.
    pub(super) fn defects_in_logs(&self) -> String {
        let internal = RepositoryError::new(ErrorKind::Internal, "").to_string();
        let logs = self.0.replicas.iter().map(|replica| replica.home.read("stderr"));
        let is_defect = |line: &&str| line.contains(&internal) || line.contains("panicked");
        let defects =
            logs.flat_map(|log| log.lines().filter(is_defect).map(str::to_owned).collect::<Vec<_>>());
        defects.collect::<Vec<_>>().join("; ")
    }

    /// Causes one fault after another until the task is aborted.
    pub(super) async fn faults(self, mut random: Random) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(Duration::from_millis(50 + random.below(200))).await;
            let replica = random.one_of(&self.0.replicas);
            let proxy = random.one_of(&replica.proxies);
            let duration = Duration::from_millis(50 + random.below(1_500));
            match random.below(14) {
                0..=2 => during(proxy, Fault::Pause, duration).await,
                3..=4 => during(proxy, Fault::Cut, duration).await,
                5..=6 => {
                    let delay = Duration::from_millis(1 + random.below(100));
                    during(proxy, Fault::Delay(delay), duration).await;
                }
                7 => {
                    // All connections fail together, as in a network outage.
                    for proxy in &replica.proxies {
                        proxy.set(Fault::Cut);
                    }
                    tokio::time::sleep(duration).await;
                    for proxy in &replica.proxies {
                        proxy.set(Fault::None);
                    }
                }
                8 => {
                    if let Some(cache) = &self.0.cache {
                        cli(cache.servers[0].port, &["FLUSHALL"]);
                    }
                }
                9 => {
                    if let Some(cache) = &self.0.cache {
                        // Notifications are lost.
                        cli(cache.servers[0].port, &["CLIENT", "KILL", "TYPE", "pubsub"]);
                    }
                }
                10 => replica.suspend(duration).await,
                // One hour into the future, one hour into the past, or back to the true time.
                11 => replica.home.step_clock(3_600 * (i64::try_from(random.below(3)).unwrap() - 1)),
                12 => replica.kill_between_commit_and_cache().await,
                _ => replica.restart().await,
            }
        }
    }
}

/// Sets a fault of the proxy for a duration.
async fn during(proxy: &Proxy, fault: Fault, duration: Duration) {
    proxy.set(fault);
    tokio::time::sleep(duration).await;
    proxy.set(Fault::None);
}

impl Replica {
    async fn start(store: &str, cache: Option<&str>, migrates: bool) -> Self {
        let mut proxies = Vec::new();
        let mut settings = vec![
            format!("server.listen=127.0.0.1:{}", free_port()),
            format!("admin.tokens=tests:{TOKEN}"),
            format!("cache.max_staleness={}ms", BOUND.as_millis()),
            "cache.min_staleness=1s".to_owned(),
            "cache.load_timeout=1s".to_owned(),
            "store.timeout=1s".to_owned(),
            "store.sql.lock_timeout=500ms".to_owned(),
            "store.sql.acquire_timeout=500ms".to_owned(),
            "server.workers=1".to_owned(),
            "telemetry.log_filter=error".to_owned(),
            "server.drain_timeout=1s".to_owned(),
        ];
        if !store.starts_with("redis") {
            settings.push(format!("store.auto_migrate={migrates}"));
        }
        for (name, url) in [("store.url", Some(store)), ("cache.redis.url", cache)] {
            let Some(url) = url else { continue };
            let (before, after) = split_port(url);
            let proxy = Proxy::start(after.0).await;
            settings.push(format!("{name}={before}:{}{}", proxy.address.port(), after.1));
            proxies.push(proxy);
        }
        let home = Arc::new(program::Home::with_clock());
        let server = serve(Arc::clone(&home), settings.clone()).await;
        let channel = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
        let channel: Channel = channel.connect_lazy();
        Self { home, settings, server: Mutex::new(Some(server)), proxies, api: Api::new(channel, TOKEN) }
    }

    /// Suspends the replica for a while. Its connections stay open.
    async fn suspend(&self, duration: Duration) {
        let server = self.server.lock().await;
        let server = server.as_ref().unwrap();
        server.signal(Signal::STOP);
        tokio::time::sleep(duration).await;
        server.signal(Signal::CONT);
    }

    /// Kills the replica while changes are committed, but not yet applied to the cache.
    async fn kill_between_commit_and_cache(&self) {
        // The proxy of the cache, if there is one, is the last.
        let Some(cache) = self.proxies.get(1) else { return };
        cache.set(Fault::Pause);
        tokio::time::sleep(Duration::from_millis(30)).await;
        self.restart().await;
    }

    /// Kills the replica, perhaps between a commit and its response, and restarts it.
    async fn restart(&self) {
        let mut server = self.server.lock().await;
        drop(server.take());
        for proxy in &self.proxies {
            proxy.set(Fault::None);
        }
        *server = Some(serve(Arc::clone(&self.home), self.settings.clone()).await);
    }
}

async fn serve(home: Arc<program::Home>, settings: Vec<String>) -> program::Server {
    let started = tokio::task::spawn_blocking(move || {
        let settings: Vec<_> = settings.iter().map(String::as_str).collect();
        home.serve(&settings)
    });
    started.await.unwrap()
}

/// Splits a URL into the text before its port, the port, and the text after it.
fn split_port(url: &str) -> (&str, (u16, &str)) {
    let (before, after) = url.rsplit_once(':').unwrap();
    let digits = after.find(|it: char| !it.is_ascii_digit()).unwrap_or(after.len());
    (before, (after[..digits].parse().unwrap(), &after[digits..]))
}
