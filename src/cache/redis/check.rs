//! The check of the server and of the user's permissions, in the background. Without it, a cache that can't be used is
//! only a cache that always misses.

use std::time::Duration;

use fred::types::Value;
use fred::types::config::Config;
use tokio::task::JoinSet;

use crate::redis::{NOTIFICATIONS, Probe, Survey, cluster_problem, forbidden_command};
use crate::telemetry::error_chain;

/// Delay before another attempt while the server can't be reached. The cache itself reports that.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Minimum timeout of a command of the check. That of the cache can be very short, because lookups wait for it.
const MIN_TIMEOUT: Duration = Duration::from_secs(1);

/// What the check needs to know about the cache.
pub(super) struct CacheCheck {
    pub(super) config: Config,
    pub(super) timeout: Duration,
    /// The addresses of the servers, without credentials.
    pub(super) address: String,
    /// A name with the prefix of the cache, never used for data.
    pub(super) name: String,
    /// The channel of wake-ups.
    pub(super) channel: String,
}

/// A check in progress. Dropping it aborts the check.
pub(super) struct RunningCheck(#[expect(dead_code, reason = "aborts the task when dropped")] JoinSet<()>);

impl CacheCheck {
    /// Checks the server once it can be reached, and logs a problem once.
    pub(super) fn start(self) -> RunningCheck {
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { self.run().await });
        RunningCheck(tasks)
    }

    async fn run(&self) {
        let timeout = self.timeout.max(MIN_TIMEOUT);
        let survey = self.survey(timeout).await;
        if let Some(problem) = survey.mismatch {
            tracing::warn!(
                cache = self.address,
                "the Redis cache can't be used, so lookups continue without it: {problem}"
            );
        } else if !survey.forbidden.is_empty() {
            self.warn_of_forbidden(survey);
        } else if let Some(problem) = cluster_problem(&self.config, timeout).await {
            let error = error_chain(&problem);
            tracing::warn!(
                cache = self.address,
                %error,
                "the Redis cache can't be used, so lookups continue without it"
            );
        }
    }

    fn warn_of_forbidden(&self, Survey { forbidden, .. }: Survey) {
        let is_usable = forbidden.iter().all(|command| NOTIFICATIONS.contains(&command.as_str()));
        let effect = if is_usable {
            "other replicas are not notified of changes through the cache"
        } else {
            "lookups continue without the cache"
        };
        let missing = forbidden.into_iter().collect::<Vec<_>>().join(" ");
        tracing::warn!(
            cache = self.address,
            missing,
            "the user of cache.redis.url lacks permissions, so {effect}; grant the commands, names and the channel listed in \
             docs/configuration.md#permissions"
        );
    }

    /// Waits until the server can be reached, and runs the commands of the cache.
    async fn survey(&self, timeout: Duration) -> Survey {
        loop {
            match Probe::connect(&self.config, timeout).await {
                Ok(probe) => {
                    let survey = probe.survey(self.commands()).await;
                    probe.close().await;
                    return survey;
                }
                // Without a password, connecting needs permission for a command.
                Err(error) => {
                    if let Some(command) = forbidden_command(&error) {
                        return Survey { forbidden: [command].into(), mismatch: None };
                    }
                }
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// Returns the commands of the cache, with arguments that change nothing.
    fn commands(&self) -> Vec<(&'static str, Vec<Value>)> {
        let name = || Value::from(self.name.as_str());
        let channel = || Value::from(self.channel.as_str());
        let mut commands: Vec<(_, Vec<Value>)> = Vec::new();
        if self.config.server.is_clustered() {
            commands.push(("CLUSTER", vec!["SLOTS".into()]));
        } else if let Some(database) = self.config.database {
            commands.push(("SELECT", vec![i64::from(database).into()]));
        }
        commands.extend([
            ("PING", vec![]),
            ("GET", vec![name()]),
            ("SET", vec![name(), "".into(), "PX".into(), 1.into()]),
            ("PTTL", vec![name()]),
            ("DEL", vec![name()]),
            ("EVAL", vec!["return 1".into(), 1.into(), name()]),
            ("PUBLISH", vec![channel(), "".into()]),
            ("SUBSCRIBE", vec![channel()]),
        ]);
        commands
    }
}
