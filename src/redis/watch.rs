//! What keeps clients going that fred would leave as they are.
//!
//! - A connection whose server hangs, or whose machine is gone without a word. fred notices only one to which nothing was
//!   written for a while, and one that is used is written to all the time. So each server is asked whether it answers, which
//!   also keeps connections in use that a load balancer would drop. If one does not, the client connects anew: Sentinel, or the
//!   name of the server, may lead to another one by now.
//! - A client whose task in fred ended by an error.
//! - A password that the server no longer takes: it is told in the log.
//!
//! In a cluster, a client that connects anew to a node that hangs holds up the commands to all others
//! ([fred.rs#363](https://github.com/aembke/fred.rs/issues/363)). So there the nodes are asked, and if one does not answer, the
//! cluster is asked whether another one has taken its place.

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

/// How often each server is asked whether it answers.
const INTERVAL: Duration = Duration::from_secs(1);
/// So often in a row it does not, before the client connects anew: what is on its way is lost then.
const MAX_SILENCES: u32 = 2;
/// How long to wait before a client whose task ended is started again.
const RESTART_DELAY: Duration = Duration::from_millis(500);

/// Watches clients until it is dropped.
pub(crate) struct Watch(#[expect(dead_code, reason = "dropped with it")] JoinSet<()>);

impl Watch {
    /// Watches `clients`, which have the same servers and whose commands may take `timeout`, and their tasks.
    pub(crate) fn start(clients: Vec<(Client, ConnectHandle)>, timeout: Duration) -> Self {
        let mut tasks = JoinSet::new();
        let is_clustered = clients.first().is_some_and(|(client, _)| client.is_clustered());
        if is_clustered {
            let clients = clients.iter().map(|(client, _)| client.clone()).collect();
            tasks.spawn(watch_cluster(clients, patience(timeout)));
        }
        for (client, task) in clients {
            if !is_clustered {
                tasks.spawn(watch_connection(client.clone(), patience(timeout)));
            }
            tasks.spawn(report(client.clone()));
            tasks.spawn(restart(client, task));
        }
        Self(tasks)
    }

    /// Watches the one connection of a client that listens.
    pub(super) fn of_listener(client: SubscriberClient, task: ConnectHandle, timeout: Duration) -> Self {
        let mut tasks = JoinSet::new();
        tasks.spawn(watch_connection(client.clone(), patience(timeout)));
        tasks.spawn(restart(client, task));
        Self(tasks)
    }
}

/// How long a server may take to say that it is there, where commands may take `timeout`.
pub(super) fn patience(timeout: Duration) -> Duration {
    (timeout / 4).max(Duration::from_millis(100))
}

/// Starts the task of a client again when it ends by an error; it ends by itself when the client is closed.
async fn restart(client: impl ClientLike, mut task: ConnectHandle) {
    while let Ok(Err(error)) = task.await {
        // Servers that can't be reached are told elsewhere, once.
        if matches!(error.kind(), ErrorKind::IO | ErrorKind::Timeout | ErrorKind::Auth) {
            tracing::debug!(%error, "a client of Redis ended and is started again");
        } else {
            tracing::warn!(%error, "a client of Redis ended and is started again");
        }
        tokio::time::sleep(RESTART_DELAY).await;
        task = client.connect();
    }
}

/// Tells in the log when a server does not take the credentials. Commands only learn that there is no connection.
async fn report(client: Client) {
    static LIMIT: LogLimit = LogLimit::new();
    let mut errors = client.error_rx();
    loop {
        match errors.recv().await {
            Ok((error, _)) if error.kind() == &ErrorKind::Auth => {
                if let Some(left_out) = LIMIT.admit() {
                    tracing::error!(%error, left_out, "Redis does not take the credentials");
                }
            }
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

async fn watch_connection(client: impl ClientLike, patience: Duration) {
    let mut ticks = ticks();
    let mut silences = 0;
    loop {
        ticks.tick().await;
        // Where there is no connection, fred is about to make one.
        let is_silent = client.state() == ClientState::Connected
            && tokio::time::timeout(patience, client.ping::<()>(None)).await.is_err();
        silences = if is_silent { silences + 1 } else { 0 };
        if silences == MAX_SILENCES {
            silences = 0;
            // fred goes on with it by itself.
            let _ = tokio::time::timeout(patience, client.force_reconnection()).await;
        }
    }
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
            // What fails now is tried again with the next tick.
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
