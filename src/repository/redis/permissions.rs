//! The startup check of the user's permissions. Otherwise the first call that needs a missing permission would fail.

use std::collections::BTreeSet;

use fred::types::Value;
use fred::types::scripts::Script;
use futures_util::future::join_all;

use super::connection::Connection;
use super::keyspace::{Keyspace, Shard};
use crate::redis::{NOTIFICATIONS, forbidden_command};
use crate::repository::{ErrorKind, RepositoryError, Result};

/// Fails if the user lacks permission for a required command. Logs a warning if it lacks one for notifications.
pub(super) async fn check(connection: &Connection, keyspace: &Keyspace) -> Result<()> {
    let mut forbidden = in_scripts(connection, keyspace).await;
    forbidden.extend(outside_scripts(connection, keyspace).await);
    let list = |is_of_notifications: bool| {
        let commands = forbidden.iter().map(String::as_str);
        let listed = commands.filter(|command| NOTIFICATIONS.contains(command) == is_of_notifications);
        listed.collect::<Vec<_>>().join(" ")
    };
    let (required, of_notifications) = (list(false), list(true));
    if !required.is_empty() {
        let problem = format!(
            "the Redis user lacks permission for {required} on names that begin with store.redis.prefix; grant the commands \
             listed in docs/configuration.md#permissions"
        );
        return Err(RepositoryError::new(ErrorKind::Unusable, problem));
    }
    if !of_notifications.is_empty() {
        tracing::warn!(
            store = %connection,
            missing = of_notifications,
            "the Redis user lacks permission for notifications, so other replicas apply changes only when they poll; grant the \
             commands and the channel listed in docs/configuration.md#permissions"
        );
    }
    Ok(())
}

/// Returns the commands on keys that the user may not run, which are used in scripts and by themselves.
async fn in_scripts(connection: &Connection, keyspace: &Keyspace) -> BTreeSet<String> {
    let probe = Script::from_lua(include_str!("permissions.lua"));
    let asked = Shard::all().map(|shard| connection.try_out(&probe, vec![keyspace.probe(shard).into()]));
    let mut forbidden = BTreeSet::new();
    for answer in join_all(asked).await {
        match answer {
            Ok(commands) => forbidden.extend(commands),
            // Startup must not depend on every node of a cluster, so other errors are ignored.
            Err(error) if error.details().contains("NOPERM") => {
                forbidden.insert("EVAL".to_owned());
            }
            Err(_) => {}
        }
    }
    forbidden
}

/// Returns the commands that the user may not run among those that no script can run.
async fn outside_scripts(connection: &Connection, keyspace: &Keyspace) -> BTreeSet<String> {
    let probe = match connection.probe().await {
        Ok(probe) => probe,
        // Other errors are those of a server that can't be reached, which the clients report.
        Err(error) => return forbidden_command(&error).into_iter().collect(),
    };
    let name = || Value::from(keyspace.probe(Shard::of_probe()));
    let channel = || Value::from(keyspace.channel());
    let unknown_script = Value::from("0".repeat(40));
    let mut commands = vec![
        ("EVALSHA", vec![unknown_script, 1.into(), name()]),
        ("PING", vec![]),
        ("PUBLISH", vec![channel(), "".into()]),
    ];
    if connection.is_clustered() {
        commands.push(("CLUSTER", vec!["SLOTS".into()]));
        commands.push(("ASKING", vec![]));
    } else {
        commands.push(("ROLE", vec![]));
    }
    if connection.waits_for_replicas() {
        commands.push(("WAIT", vec![0.into(), 1.into()]));
    }
    commands.push(("SUBSCRIBE", vec![channel()]));
    let survey = probe.survey(commands).await;
    probe.close().await;
    survey.forbidden
}
