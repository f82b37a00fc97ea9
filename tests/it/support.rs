//! Test servers in this process.

use std::net::SocketAddr;
use std::time::Duration;

use keyvouch::app::{App, ListenAddr, Surroundings};
use keyvouch::config::{Config, HumanDuration, SecretText};
use keyvouch::conformance::api::{Api, new_key};
use keyvouch::grpc::pb;
use keyvouch::repository::Backend;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::Code;
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

/// Returns the settings with metrics and probes on a free port.
pub(crate) fn with_metrics(mut config: Config) -> Config {
    config.telemetry.listen = "127.0.0.1:0".into();
    config
}

/// Returns a request for a key with one scope.
pub(crate) fn key_with_scope(scope: &str) -> pb::CreateKeyRequest {
    pb::CreateKeyRequest { scopes: vec![scope.to_owned()], ..new_key() }
}

/// Returns a request to validate a key string.
pub(crate) fn validate_request(secret: &str) -> pb::ValidateRequest {
    pb::ValidateRequest { secret: secret.to_owned(), ..pb::ValidateRequest::default() }
}

/// Returns the code and the reason of a call that is rejected because of a limit.
pub(crate) fn overloaded() -> (Code, String) {
    (Code::ResourceExhausted, "OVERLOADED".to_owned())
}

/// Returns the code of a call whose caller lacks a permission, and the reason `reason`.
pub(crate) fn permission_denied(reason: &str) -> (Code, String) {
    (Code::PermissionDenied, reason.to_owned())
}

/// Returns the code of a call without a valid credential, and the reason `reason`.
pub(crate) fn unauthenticated(reason: &str) -> (Code, String) {
    (Code::Unauthenticated, reason.to_owned())
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
