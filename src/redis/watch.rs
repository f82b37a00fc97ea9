//! Supervision of Redis clients beyond what fred does.
//!
//! - *Servers that hang, and hosts that vanish.* fred treats a connection as dead only if nothing was written
//!   to it for a while, and connections in use are written to all the time. So each server is pinged once per
//!   second, which also keeps idle connections open in load balancers. After two pings without an answer the
//!   client reconnects; Sentinel, or DNS, may lead it to another server.
//! - *Clients whose task in fred ended with an error* are started again.
//! - *Rejected credentials* are logged.
//!
//! In a cluster, a client that reconnects to a hanging node delays the commands to all other nodes
//! ([fred.rs#363](https://github.com/aembke/fred.rs/issues/363)). So nodes are pinged, and if one does not
//! answer, the cluster's topology is read again.

use std::time::Duration;

use fred::clients::{Client, SubscriberClient};
use fred::error::ErrorKind;
use fred::interfaces::{ClientLike, ClusterInterface as _, EventInterface as _};
use fred::types::config::{Options, Server};
use fred::types::{ClientState, ConnectHandle};
use futures_util::future::join_all;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::telemetry::LogLimit;

/// Interval between two pings of a server.
const INTERVAL: Duration = Duration::from_secs(1);
/// Number of unanswered pings in a row after which the client reconnects. Commands in flight fail then.
const MAX_SILENCES: u32 = 2;
/// Delay before a client whose task ended is started again.
const RESTART_DELAY: Duration = Duration::from_millis(500);

/// Supervises clients until it is dropped.
pub(crate) struct Watch(#[expect(dead_code, reason = "aborts the tasks when dropped")] JoinSet<()>);

impl Watch {
    /// Supervises `clients` of the same servers, and their tasks. `timeout` is the timeout of their commands.
    pub(crate) fn start(clients: Vec<(Client, ConnectHandle)>, timeout: Duration) -> Self {
        let mut tasks = JoinSet::new();
        let all: Vec<_> = clients.iter().map(|(client, _)| client.clone()).collect();
        if all.first().is_some_and(Client::is_clustered) {
            tasks.spawn(watch_cluster(all, patience(timeout)));
        } else {
            tasks.spawn(watch_server(all, patience(timeout)));
        }
        for (client, task) in clients {
            tasks.spawn(report(client.clone()));
            tasks.spawn(restart(client, task));
        }
        Self(tasks)
    }

    /// Supervises a subscriber, which has one connection.
    pub(super) fn of_listener(client: SubscriberClient, task: ConnectHandle, timeout: Duration) -> Self {
        let mut tasks = JoinSet::new();
        tasks.spawn(watch_server(vec![client.clone()], patience(timeout)));
        tasks.spawn(restart(client, task));
        Self(tasks)
    }
}

/// Returns the timeout of a ping, given the timeout of commands.
pub(super) fn patience(timeout: Duration) -> Duration {
    (timeout / 4).max(Duration::from_millis(100))
}

/// Restarts the task of a client when it ends with an error. Closing the client ends it without one.
async fn restart(client: impl ClientLike, mut task: ConnectHandle) {
    // A reason that persists, such as a missing permission, ends the client each time it is started.
    let mut logged = None;
    loop {
        match task.await {
            // Unreachable servers are logged elsewhere, once.
            Ok(Err(error))
                if matches!(error.kind(), ErrorKind::IO | ErrorKind::Timeout | ErrorKind::Auth)
                    || logged.as_ref() == Some(&error) =>
            {
                tracing::debug!(%error, "a Redis client ended and is started again");
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "a Redis client ended and is started again");
                logged = Some(error);
            }
            Err(error) if error.is_panic() => {
                tracing::error!(%error, "a Redis client panicked and is started again");
            }
            // The client was closed, or the runtime shuts down.
            Ok(Ok(())) | Err(_) => return,
        }
        tokio::time::sleep(RESTART_DELAY).await;
        task = client.connect();
    }
}

/// Logs rejected credentials. Commands only report that there is no connection.
async fn report(client: Client) {
    // Each client is rejected several times per second.
    static LIMIT: LogLimit = LogLimit::per(Duration::from_secs(10), 1);
    let mut errors = client.error_rx();
    loop {
        match errors.recv().await {
            Ok((error, _)) if error.kind() == &ErrorKind::Auth => {
                if let Some(left_out) = LIMIT.admit() {
                    tracing::error!(%error, left_out, "Redis rejects the credentials");
                }
            }
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

/// Pings a server over the connections of `clients`. All clients reconnect when the first one is silent. On
/// the other connections a response can be late although the server is healthy, because it is queued behind
/// changes that wait for replicas.
async fn watch_server(clients: Vec<impl ClientLike>, patience: Duration) {
    let mut ticks = ticks();
    let mut silences = 0;
    loop {
        ticks.tick().await;
        let asked = clients.iter().map(|client| is_silent(client, patience));
        let is_first_silent = join_all(asked).await.first().copied().unwrap_or_default();
        silences = if is_first_silent { silences + 1 } else { 0 };
        if silences == MAX_SILENCES {
            silences = 0;
            // fred continues the reconnection in the background, also after the timeout.
            let reconnections = join_all(clients.iter().map(ClientLike::force_reconnection));
            let _ = tokio::time::timeout(patience, reconnections).await;
        }
    }
}

async fn is_silent(client: &impl ClientLike, patience: Duration) -> bool {
    // Without a connection, fred is already reconnecting.
    client.state() == ClientState::Connected
        && tokio::time::timeout(patience, client.ping::<()>(None)).await.is_err()
}

async fn watch_cluster(clients: Vec<Client>, patience: Duration) {
    let mut ticks = ticks();
    loop {
        ticks.tick().await;
        let primaries = clients[0].cached_cluster_state().map(|state| state.unique_primary_nodes());
        let primaries = primaries.unwrap_or_default();
        let asked = clients.iter().flat_map(|client| {
            primaries.iter().map(move |primary| node_answers(client, primary.clone(), patience))
        });
        if !join_all(asked).await.into_iter().all(|answers| answers) {
            // A failure is retried at the next tick.
            join_all(clients.iter().map(Client::sync_cluster)).await;
        }
    }
}

fn ticks() -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn node_answers(client: &Client, node: Server, patience: Duration) -> bool {
    let of_it = Options { cluster_node: Some(node), timeout: Some(patience), ..Options::default() };
    client.with_options(&of_it).ping::<()>(None).await.is_ok()
}
