//! Nodes of a cluster that hang.
//!
//! fred connects again to a server that went silent before it does anything else, so that one hung shard would hold up all
//! the others for as long as it hangs ([fred.rs#363](https://github.com/aembke/fred.rs/issues/363)). In a cluster it is
//! therefore told to leave silent connections alone. Their commands end by their deadline, and here the nodes are asked
//! whether they answer: of one that does not, the cluster is asked whether another one has taken its place.

use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::{ClientLike as _, ClusterInterface as _};
use fred::types::config::{Options, Server};
use futures_util::future::join_all;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

/// How often each primary is asked whether it answers.
const INTERVAL: Duration = Duration::from_secs(1);

/// Asks until it is dropped.
pub(crate) struct NodeWatch(JoinHandle<()>);

impl NodeWatch {
    /// Watches the nodes of `clients`, which have the same; `None` if these are no clients of a cluster.
    pub(crate) fn start(clients: Vec<Client>, timeout: Duration) -> Option<Self> {
        let is_clustered = clients.first().is_some_and(Client::is_clustered);
        is_clustered.then(|| Self(tokio::spawn(watch(clients, patience(timeout)))))
    }
}

impl Drop for NodeWatch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How long a node may take to say that it is there, where commands may take `timeout`: while fred waits for that, commands
/// to the other nodes wait with it.
pub(super) fn patience(timeout: Duration) -> Duration {
    (timeout / 4).max(Duration::from_millis(100))
}

async fn watch(clients: Vec<Client>, patience: Duration) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if !all_answer(&clients[0], patience).await {
            // What fails now is tried again with the next tick.
            join_all(clients.iter().map(Client::sync_cluster)).await;
        }
    }
}

async fn all_answer(client: &Client, patience: Duration) -> bool {
    let primaries =
        client.cached_cluster_state().map(|state| state.unique_primary_nodes()).unwrap_or_default();
    let ask = async |primary: Server| {
        let of_it = Options { cluster_node: Some(primary), timeout: Some(patience), ..Options::default() };
        client.with_options(&of_it).ping::<()>(None).await.is_ok()
    };
    join_all(primaries.into_iter().map(ask)).await.into_iter().all(|answers| answers)
}
