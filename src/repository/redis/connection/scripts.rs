//! Running scripts. A script that changes keys waits for the confirmation of replicas.

use fred::bytes_utils::Str;
use fred::clients::{Client, Pipeline};
use fred::interfaces::{ClientLike as _, LuaInterface as _, ServerInterface as _};
use fred::prelude::FromValue;
use fred::types::config::Options;
use fred::types::scripts::Script;
use fred::types::{ClusterHash, CustomCommand, Key, Value};

use super::Connection;
use crate::repository::redis::error::{from_fred, is_read_only};
use crate::repository::redis::keyspace::Shard;
use crate::repository::{ErrorKind, RepositoryError, Result};

/// The ways to run a script.
#[derive(Clone, Copy, Debug)]
enum ScriptCommand {
    EvalSha,
    Eval,
}

impl ScriptCommand {
    /// Returns the command and the form in which it takes `script`.
    fn of(self, script: &Script) -> (&'static str, Str) {
        match self {
            Self::EvalSha => ("EVALSHA", script.sha1().clone()),
            Self::Eval => ("EVAL", script.lua().cloned().unwrap_or_default()),
        }
    }
}

impl Connection {
    /// Runs a script by its text, and returns its response as strings.
    pub(in crate::repository::redis) async fn try_out(
        &self,
        script: &Script,
        keys: Vec<Key>,
    ) -> std::result::Result<Vec<String>, fred::error::Error> {
        let (_, text) = ScriptCommand::Eval.of(script);
        self.reads.eval(text, keys, Vec::<Value>::new()).await
    }

    /// Runs a script that changes keys. It returns revisions, or a word that states why nothing was changed.
    /// A change is acknowledged once enough replicas have it.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] if too few replicas confirmed the change before the timeout. The change was
    /// made nevertheless. Other errors are those of [`from_fred`].
    pub(in crate::repository::redis) async fn change(
        &self,
        shard: Shard,
        script: &Script,
        keys: Vec<Key>,
        arguments: Vec<Value>,
    ) -> Result<Vec<String>> {
        let changed = self.repeated(|| {
            self.by_hash_or_text(|command| {
                self.change_and_wait(shard, command.of(script), keys.clone(), arguments.clone())
            })
        });
        let (answer, confirmed) = changed.await.map_err(from_fred)?;
        let is_change = answer.iter().all(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        if is_change && confirmed < i64::from(self.min_replicas_ack) {
            return Err(RepositoryError::new(
                ErrorKind::Unavailable,
                "too few Redis replicas acknowledged the change",
            ));
        }
        Ok(answer)
    }

    /// Sends the script and the `WAIT` for its replicas together on one connection. On another connection,
    /// `WAIT` would not cover the change and would return at once.
    ///
    /// A change whose connection broke may have been made. It is not sent again, because the caller has to
    /// determine the outcome.
    async fn change_and_wait(
        &self,
        shard: Shard,
        (command, script): (&'static str, Str),
        keys: Vec<Key>,
        arguments: Vec<Value>,
    ) -> std::result::Result<(Vec<String>, i64), fred::error::Error> {
        let slot = keys.first().map(Key::cluster_hash).filter(|_| self.is_clustered());
        // Without a limit of attempts, a client that reconnects sends commands again that were in flight.
        let to_its_node = Options {
            cluster_hash: slot.map(ClusterHash::Custom),
            fail_fast: true,
            max_attempts: Some(1),
            ..Options::default()
        };
        let client = self.for_changes_of(shard).with_options(&to_its_node);
        let hash = slot.map_or(ClusterHash::Random, ClusterHash::Custom);
        let mut all = vec![Value::from(script), Value::from(i64::try_from(keys.len()).unwrap_or(i64::MAX))];
        all.extend(keys.iter().map(|key| Value::from(key.as_bytes())));
        all.extend(arguments);
        // fred's pipelines have no functions for scripts.
        let command = CustomCommand::new_static(command, hash, false);
        if self.min_replicas_ack == 0 {
            return Ok((client.custom(command, all).await?, 0));
        }
        let pipeline = Pipeline::from(client);
        pipeline.custom::<(), _>(command, all).await?;
        let millis = i64::try_from(self.timeout.as_millis() / 2).unwrap_or(i64::MAX).max(1);
        pipeline.wait::<()>(self.min_replicas_ack.into(), millis).await?;
        let mut answers = pipeline.try_all::<Value>().await.into_iter();
        let mut next = || answers.next().unwrap_or_else(|| Err(fred::error::Error::new_canceled()));
        let (answer, confirmed) = (next()?, next()?);
        Ok((answer.convert()?, confirmed.convert()?))
    }

    /// Runs a script that changes nothing.
    pub(in crate::repository::redis) async fn ask<T: FromValue>(
        &self,
        script: &Script,
        keys: Vec<Key>,
    ) -> Result<T> {
        self.evaluate(&self.reads, script, keys, Vec::new()).await
    }

    /// Runs a script whose changes may be lost in a failover.
    pub(in crate::repository::redis) async fn note(
        &self,
        script: &Script,
        keys: Vec<Key>,
        arguments: Vec<Value>,
    ) -> Result<()> {
        self.evaluate::<i64>(&self.reads, script, keys, arguments).await.map(drop)
    }

    async fn evaluate<T: FromValue>(
        &self,
        client: &Client,
        script: &Script,
        keys: Vec<Key>,
        arguments: Vec<Value>,
    ) -> Result<T> {
        let evaluate = |command: ScriptCommand| {
            let (keys, arguments) = (keys.clone(), arguments.clone());
            async move {
                let (_, script) = command.of(script);
                match command {
                    ScriptCommand::EvalSha => client.evalsha(script, keys, arguments).await,
                    ScriptCommand::Eval => client.eval(script, keys, arguments).await,
                }
            }
        };
        self.repeated(|| self.by_hash_or_text(evaluate)).await.map_err(from_fred)
    }

    /// Runs a script by its hash. If the server does not have the script, for example after a failover, runs
    /// it by its text, which loads it. Loading it with a separate command would need all nodes of a cluster.
    async fn by_hash_or_text<T, F>(
        &self,
        evaluate: impl Fn(ScriptCommand) -> F,
    ) -> std::result::Result<T, fred::error::Error>
    where
        F: Future<Output = std::result::Result<T, fred::error::Error>>,
    {
        let mut outcome = evaluate(ScriptCommand::EvalSha).await;
        if outcome.as_ref().is_err_and(|error| error.details().starts_with("NOSCRIPT")) {
            outcome = evaluate(ScriptCommand::Eval).await;
        }
        if outcome.as_ref().is_err_and(is_read_only) {
            self.look_for_primary().await;
        }
        outcome
    }

    fn for_changes_of(&self, shard: Shard) -> &Client {
        &self.changes[usize::from(shard.number()) % self.changes.len()]
    }
}
