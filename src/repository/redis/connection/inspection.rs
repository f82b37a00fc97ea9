//! The state and the settings of servers.

use std::collections::HashMap;

use fred::interfaces::ClientLike;
use fred::types::{ClusterHash, CustomCommand, InfoKind, Value};
use futures_util::future::join_all;

use super::Connection;
use crate::repository::Result;
use crate::repository::redis::error::{from_fred, from_start};

/// The setting by which a node that is cut off from its cluster continues to answer reads.
pub(in crate::repository::redis) const ALLOWS_STALE_READS: &str = "cluster-allow-reads-when-down";

impl Connection {
    /// Returns the output of `INFO` and the settings of the server, or of each primary of a cluster. It is part of the
    /// startup, so a missing permission is an error of the settings.
    pub(in crate::repository::redis) async fn describe(
        &self,
    ) -> Result<Vec<(String, HashMap<String, String>)>> {
        if !self.is_clustered() {
            let info: String = self.reads.info(None).await.map_err(from_start)?;
            return Ok(vec![(info, settings(&self.reads).await)]);
        }
        let mut described = Vec::new();
        for primary in self.primaries() {
            let node = self.reads.with_cluster_node(primary);
            let info: String = node.info(None).await.map_err(from_start)?;
            described.push((info, settings(&node).await));
        }
        Ok(described)
    }

    /// Returns the output of `INFO memory`: of the server, or of each primary of a cluster.
    pub(in crate::repository::redis) async fn memory(&self) -> Result<Vec<String>> {
        if !self.is_clustered() {
            return Ok(vec![self.reads.info(Some(InfoKind::Memory)).await.map_err(from_fred)?]);
        }
        let asked = self.primaries().into_iter().map(|primary| async move {
            self.reads.with_cluster_node(primary).info::<String>(Some(InfoKind::Memory)).await
        });
        // Nodes that are down are reported elsewhere.
        Ok(join_all(asked).await.into_iter().flatten().collect())
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
