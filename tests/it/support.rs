//! Test servers in this process.

use std::net::SocketAddr;
use std::time::Duration;

use keyvouch::app::{App, ListenAddr, Surroundings};
use keyvouch::config::{Config, HumanDuration, SecretText};
use keyvouch::conformance::api::Api;
use keyvouch::repository::Backend;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

/// The admin token of all test servers.
pub(crate) const TOKEN: &str = "an-admin-token-for-the-tests";

/// A server. Dropping it stops the server.
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    /// Address of probes and metrics, if they are enabled.
    pub(crate) ops: Option<SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<anyhow::Result<()>>,
}

/// Returns settings for a test, with a free port, a known token and short intervals.
pub(crate) fn config() -> Config {
    let mut config = Config::default();
    config.server.listen = vec!["127.0.0.1:0".into()];
    config.server.workers = 2;
    config.server.handshake_timeout = HumanDuration(Duration::from_mins(1));
    config.server.drain_timeout = HumanDuration(Duration::from_secs(5));
    config.admin.tokens = vec![SecretText::from(format!("tests:{TOKEN}"))];
    config.usage.flush_interval = HumanDuration(Duration::from_millis(20));
    config
}

/// Returns the same settings without a cache, so that every call reaches the backend.
pub(crate) fn uncached() -> Config {
    let mut config = config();
    config.cache.local.enabled = false;
    config
}

impl TestServer {
    pub(crate) async fn start(backend: impl Into<Backend>) -> Self {
        Self::start_with(backend, &config()).await
    }

    pub(crate) async fn start_with(backend: impl Into<Backend>, config: &Config) -> Self {
        Self::start_in(backend, config, Surroundings::default()).await
    }

    pub(crate) async fn start_in(
        backend: impl Into<Backend>,
        config: &Config,
        surroundings: Surroundings,
    ) -> Self {
        let app = App::with_backend(&config.parse().unwrap(), surroundings, backend).await.unwrap();
        let address = match app.addresses().next() {
            Some(ListenAddr::Tcp(address)) => *address,
            other => panic!("no TCP address: {other:?}"),
        };
        let ops = app.ops_address();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(app.run(async {
            // A dropped sender stops the server as well.
            let _ = stopped.await;
        }));
        Self { address, ops, stop: Some(stop), running }
    }

    pub(crate) async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn api(&self) -> Api {
        Api::new(self.channel().await, TOKEN)
    }

    /// Begins the graceful shutdown.
    pub(crate) fn begin_stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.send(()).unwrap();
        }
    }

    /// Waits until the server has stopped.
    pub(crate) async fn ended(self) -> anyhow::Result<()> {
        self.running.await.unwrap()
    }
}

/// Waits until a condition holds. Panics after 30 seconds.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let polling = tokio::time::timeout(Duration::from_secs(30), async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    polling.await.unwrap_or_else(|_| panic!("timed out waiting for {what}"));
}
