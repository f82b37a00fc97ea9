//! Reads that only a primary may answer, and the search for the primary.

use std::time::Duration;

use fred::clients::Pipeline;
use fred::interfaces::{ClientLike, ClusterInterface as _, KeysInterface as _};
use fred::types::config::{Options, Server};
use fred::types::{ClusterHash, CustomCommand, Value};
use fred::util::redis_keyslot;
use futures_util::future::join_all;
use prost::bytes::Bytes;
use tokio::time::Instant;

use super::Connection;
use crate::repository::redis::error::{from_fred, was_not_run};
use crate::repository::{ErrorKind, RepositoryError, Result};

/// Minimum time between reconnections that look for the primary.
const SEARCH_INTERVAL: Duration = Duration::from_millis(500);

/// Returns the command that reads a server's role.
fn role() -> CustomCommand {
    CustomCommand::new_static("ROLE", ClusterHash::Random, false)
}

impl Connection {
    /// Fails if the server is not a primary. A replica answers reads with old data, so the server's role is
    /// read. Nodes of a cluster redirect reads to the primary by themselves.
    pub(in crate::repository::redis) async fn check_role(&self) -> Result<()> {
        if self.is_clustered() {
            return Ok(());
        }
        let role = self.reads.custom(role(), Vec::<Value>::new()).await.map_err(from_fred)?;
        self.require_primary(role).await
    }

    /// Reads the values of `names`, which are in one slot, from the primary. The response of a replica must
    /// not be used, so the server's role is read last in the same round trip. Nodes of a cluster redirect
    /// reads to the primary by themselves.
    pub(in crate::repository::redis) async fn read_primary(
        &self,
        names: Vec<String>,
    ) -> Result<Vec<Option<Bytes>>> {
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
        self.look_for_primary().await;
        Err(RepositoryError::new(ErrorKind::Unavailable, "the server is a replica and not the primary"))
    }

    /// Looks for the primary by reconnecting: Sentinel, or the name of the server, may lead to another
    /// server. If that fails, fred continues in the background. Of several concurrent calls, only one
    /// reconnects, and at most once per [`SEARCH_INTERVAL`], so that connections can settle.
    pub(super) async fn look_for_primary(&self) {
        let Ok(mut last) = self.last_search.try_lock() else { return };
        if last.is_some_and(|last| last.elapsed() < SEARCH_INTERVAL) {
            return;
        }
        // The caller already has its error. Bound the reconnection by one command timeout.
        let reconnections = join_all(self.all().map(ClientLike::force_reconnection));
        let _ = tokio::time::timeout(self.timeout, reconnections).await;
        *last = Some(Instant::now());
    }

    /// Returns the primaries of a cluster.
    pub(super) fn primaries(&self) -> Vec<Server> {
        let state = self.reads.cached_cluster_state();
        state.map(|state| state.unique_primary_nodes()).unwrap_or_default()
    }
}
