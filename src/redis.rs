//! Connections to Redis, for the backend and for the cache.

use std::sync::Arc;
use std::time::Duration;

use fred::clients::{Client, SubscriberClient};
use fred::interfaces::{ClientLike as _, EventInterface as _, PubsubInterface as _};
use fred::types::Builder;
use fred::types::config::{
    Config, ConnectionConfig, PerformanceConfig, ReconnectPolicy, ServerConfig, UnresponsiveConfig,
};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use self::password_file::PasswordFile;

mod error;
mod files;
mod mode;
mod password_file;
mod probe;
mod url;
mod watch;

use error::Result;
pub(crate) use error::{InvalidSettings, NO_DATABASE, forbidden_command};
pub use files::{ClientCertificate, RedisFiles};
pub(crate) use mode::{IS_SENTINEL, NO_CLUSTER, mismatch};
pub(crate) use probe::{ClusterProblem, NOTIFICATIONS, Probe, Survey, cluster_problem};
use url::ParsedUrl;
pub(crate) use url::is_scheme;
pub(crate) use watch::Watch;

/// Delays before the first and the last attempts to reconnect, in milliseconds.
const RECONNECT_MILLIS: (u32, u32) = (20, 500);
/// Maximum number of commands that wait for a connection. Further commands are rejected at once.
const MAX_WAITING: usize = 50_000;

/// Minimum time for which sent data may stay unacknowledged by the remote host's kernel before the connection
/// is closed.
const HALF_OPEN: Duration = Duration::from_secs(5);

/// Parses `url` and reads `files`.
///
/// # Errors
/// The URL or a file is invalid. Errors contain no part of the URL except the name of a parameter.
pub(crate) fn config(url: &str, files: &RedisFiles) -> Result<Config> {
    let mut config = parse(url, files)?;
    let Some(password_file) = &files.password else { return Ok(config) };
    if config.password.is_some() {
        return Err(InvalidSettings::new(
            "both the URL and the password file have a password; remove one of them",
        ));
    }
    if config.server.is_sentinel() {
        // fred sends a provider's credentials to the sentinels as well.
        return Err(InvalidSettings::new(
            "a password file is not supported with Sentinel; put the password into the URL",
        ));
    }
    config.credential_provider = Some(Arc::new(PasswordFile::open(config.username.clone(), password_file)?));
    Ok(config)
}

fn parse(url: &str, files: &RedisFiles) -> Result<Config> {
    let ParsedUrl { mut config, has_tls } = url::parse(url)?;
    if has_tls {
        config.tls = Some(files.tls()?.into());
    } else if files.need_tls() {
        return Err(InvalidSettings::new(
            "certificate files need a URL with TLS; use rediss:, rediss-sentinel: or rediss-cluster:",
        ));
    }
    Ok(config)
}

/// Maximum number of times that a command is sent. fred stops its client when this number is exceeded.
/// Commands that must not be repeated after their connection broke set `fail_fast` and a limit of their own.
const MAX_ATTEMPTS: u32 = 4;

/// Returns a client that reconnects by itself. Its commands time out after `timeout`. A command that a
/// cluster redirects fails with "Too many redirections." The client then has the new topology, and the
/// command can be sent again.
///
/// fred 10.1.0 must not follow redirections itself: after `ASK` it reads the next response on the connection
/// as the response to its `ASKING` (`router/utils.rs`, `send_asking_with_policy`), although it may belong to
/// another command in flight. From then on, each command on the connection gets the response to another one.
pub(crate) fn client(config: Config, timeout: Duration) -> Result<Client> {
    Builder::from_config(config)
        .with_performance_config(|performance: &mut PerformanceConfig| {
            performance.default_command_timeout = timeout;
        })
        .with_connection_config(|connection: &mut ConnectionConfig| {
            let patience = watch::patience(timeout);
            connection.connection_timeout = patience;
            connection.internal_command_timeout = patience;
            connection.max_command_buffer_len = MAX_WAITING;
            connection.max_command_attempts = MAX_ATTEMPTS;
            connection.max_redirections = 0;
            // `Watch` detects servers that hang; the kernel detects hosts that are gone.
            connection.unresponsive = UnresponsiveConfig { max_timeout: None, interval: timeout };
            connection.tcp.user_timeout = Some(HALF_OPEN.max(timeout));
        })
        .set_policy(reconnects())
        .build()
        .map_err(|_| InvalidSettings::new("the URL has options that can't be combined"))
}

/// Returns the addresses of the servers, without credentials.
pub(crate) fn addresses(server: &ServerConfig) -> String {
    let list = |hosts: &[fred::types::config::Server]| {
        hosts.iter().map(|it| format!("{}:{}", it.host, it.port)).collect::<Vec<_>>().join(",")
    };
    match server {
        ServerConfig::Centralized { server } => format!("redis://{}:{}", server.host, server.port),
        ServerConfig::Clustered { hosts, .. } => format!("redis-cluster://{}", list(hosts)),
        ServerConfig::Sentinel { hosts, service_name, .. } => {
            format!("redis-sentinel://{}/{service_name}", list(hosts))
        }
        ServerConfig::Unix { path } => format!("redis+unix:{}", path.display()),
    }
}

fn reconnects() -> ReconnectPolicy {
    let (first, last) = RECONNECT_MILLIS;
    ReconnectPolicy::new_exponential(0, first, last, 2)
}

/// Returns a stream that yields after messages in `channel`, and after reconnections, during which messages
/// may have been lost. A message is only a hint that there are changes to read. It may come twice or never.
pub(crate) fn wake_ups(config: &Config, timeout: Duration, channel: String) -> BoxStream<'static, ()> {
    let subscriber = Builder::from_config(config.clone())
        .with_connection_config(|connection: &mut ConnectionConfig| {
            connection.connection_timeout = watch::patience(timeout);
            connection.internal_command_timeout = watch::patience(timeout);
            connection.tcp.user_timeout = Some(HALF_OPEN.max(timeout));
        })
        .set_policy(reconnects())
        .build_subscriber_client();
    let Ok(subscriber) = subscriber else {
        // A client was built from the same settings before, so this can't fail.
        return stream::pending().boxed();
    };
    // Capacity 1: pending wake-ups are coalesced.
    let (wake, woken) = mpsc::channel(1);
    tokio::spawn(listen(subscriber, timeout, channel, wake));
    ReceiverStream::new(woken).boxed()
}

async fn listen(subscriber: SubscriberClient, timeout: Duration, channel: String, wake: mpsc::Sender<()>) {
    let (mut messages, mut reconnects) = (subscriber.message_rx(), subscriber.reconnect_rx());
    let connected = subscriber.connect();
    let _watch = Watch::of_listener(subscriber.clone(), connected, timeout);
    // fred's own task for this ends silently when it falls behind.
    let subscribe = async || {
        while subscriber.subscribe(channel.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(RECONNECT_MILLIS.1.into())).await;
        }
    };
    tokio::select! {
        () = subscribe() => {}
        () = wake.closed() => {}
    }
    while !wake.is_closed() {
        let is_over = tokio::select! {
            () = wake.closed() => true,
            message = messages.recv() => matches!(message, Err(RecvError::Closed)),
            reconnected = reconnects.recv() => {
                subscribe().await;
                matches!(reconnected, Err(RecvError::Closed))
            }
        };
        if is_over {
            break;
        }
        // A full channel already has a pending wake-up.
        let _ = wake.try_send(());
    }
    // The connection is not needed any more, so an error has no effect.
    let _ = subscriber.quit().await;
}
