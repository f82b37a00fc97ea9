//! Short connections that determine why servers can't be used: permissions that are missing, a URL for another kind of
//! deployment, and addresses of a Cluster that can't be reached.

use std::collections::BTreeSet;
use std::io;
use std::pin::pin;
use std::time::Duration;

use fred::clients::SubscriberClient;
use fred::error::{Error, ErrorKind};
use fred::interfaces::ClientLike as _;
use fred::types::config::{Config, ConnectionConfig, PerformanceConfig, Server, ServerConfig};
use fred::types::{Builder, ClusterHash, CustomCommand, Value};
use futures_util::future::{Either, join_all, select};
use tokio::net::TcpStream;

use super::error::{NO_DATABASE, forbidden_command};
use super::mode::mismatch;

/// Commands without which replicas are not notified of changes, but read them when they poll.
pub(crate) const NOTIFICATIONS: [&str; 2] = ["PUBLISH", "SUBSCRIBE"];

/// A connection to one server, which is closed after use and never reconnects.
pub(crate) struct Probe {
    client: SubscriberClient,
    timeout: Duration,
    /// Whether the URL is that of a Cluster.
    is_for_cluster: bool,
}

/// The answers of a server to a list of commands.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// The commands that the user may not run, or that the server does not have.
    pub(crate) forbidden: BTreeSet<String>,
    /// The problem of a URL that is for another kind of deployment.
    pub(crate) mismatch: Option<&'static str>,
}

/// A reason for which the clients of a Cluster can't start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterProblem {
    #[error(
        "the Redis user lacks permission for {0}; grant the commands listed in docs/configuration.md#permissions"
    )]
    Forbidden(String),
    #[error(
        "the Cluster announces `{address}` as the address of a primary, which can't be reached; if that node is up, set \
         `cluster-announce-ip`, `cluster-announce-hostname` or `cluster-announce-port` on it to an address that Keyvouch can reach"
    )]
    Unreachable {
        address: String,
        #[source]
        source: io::Error,
    },
}

impl Probe {
    /// Connects to the server of `config`, or to the first server of a Cluster that answers. Commands and the
    /// connection time out after `timeout`.
    ///
    /// # Errors
    /// The server can't be reached or rejects the credentials. For a Cluster, this is the error of the last server.
    pub(crate) async fn connect(config: &Config, timeout: Duration) -> Result<Self, Error> {
        let ServerConfig::Clustered { hosts, .. } = &config.server else {
            return Self::connect_to(config.clone(), timeout, false).await;
        };
        let mut outcome = Err(Error::new(ErrorKind::Config, "the URL has no servers"));
        for server in hosts.clone() {
            let alone = Config { server: ServerConfig::Centralized { server }, ..config.clone() };
            outcome = Self::connect_to(alone, timeout, true).await;
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    async fn connect_to(mut config: Config, timeout: Duration, is_for_cluster: bool) -> Result<Self, Error> {
        // A client with a database number can't connect without permission for `SELECT`.
        config.database = None;
        let client = Builder::from_config(config)
            .with_performance_config(|performance: &mut PerformanceConfig| {
                performance.default_command_timeout = timeout;
            })
            .with_connection_config(|connection: &mut ConnectionConfig| {
                connection.connection_timeout = timeout;
                connection.internal_command_timeout = timeout;
                connection.max_command_attempts = 1;
            })
            .build_subscriber_client()?;
        client.init().await?;
        Ok(Self { client, timeout, is_for_cluster })
    }

    async fn run(&self, command: &'static str, arguments: Vec<Value>) -> Result<Value, Error> {
        let command = CustomCommand::new_static(command, ClusterHash::Random, false);
        self.client.custom(command, arguments).await
    }

    /// Runs `commands`, each with its arguments, and `INFO`, without which a mismatch is not determined. A Cluster
    /// node checks permissions before it redirects.
    pub(crate) async fn survey(&self, commands: Vec<(&'static str, Vec<Value>)>) -> Survey {
        let info = self.run("INFO", Vec::new()).await.ok().and_then(|info| info.as_string());
        let mismatch = info.and_then(|info| mismatch(&info, self.is_for_cluster));
        let mut survey = Survey { mismatch, ..Survey::default() };
        for (command, arguments) in commands {
            let answer = match command {
                "SUBSCRIBE" => self.subscribe(arguments).await,
                _ => self.run(command, arguments).await.map(drop),
            };
            if let Err(error) = answer {
                survey.add(command, &error);
            }
        }
        survey
    }

    /// Subscribes to a channel. No other command can follow on this connection.
    ///
    /// fred's own function returns before the answer. It also drops answers to this command, except errors, so
    /// that the answer to a following command is received in its place.
    async fn subscribe(&self, channel: Vec<Value>) -> Result<(), Error> {
        let subscribe = pin!(self.run("SUBSCRIBE", channel));
        let ping = pin!(self.run("PING", Vec::new()));
        let answer = match select(subscribe, ping).await {
            Either::Left((answer, _)) => answer,
            Either::Right((_, subscribe)) => subscribe.await,
        };
        match answer {
            // This is the answer to `PING`.
            Err(error) if forbidden_command(&error).as_deref() == Some("PING") => Ok(()),
            answer => answer.map(drop),
        }
    }

    /// Returns the addresses of the primaries of a Cluster, in the order of their slots.
    async fn announced(&self) -> Result<Vec<(String, u16)>, Error> {
        let slots = self.run("CLUSTER", vec!["SLOTS".into()]).await?;
        let asked = self.client.client_config().server.hosts().into_iter().next();
        let mut announced = Vec::new();
        for range in slots.into_array() {
            // The first node of a range is its primary: the host, the port, and further fields.
            let Some(Value::Array(node)) = range.into_array().into_iter().nth(2) else { continue };
            let address = address_of(&node, asked.as_ref());
            announced.extend(address.filter(|address| !announced.contains(address)));
        }
        Ok(announced)
    }

    /// Closes the connection.
    pub(crate) async fn close(self) {
        // A connection that is broken is closed already. fred sends no `QUIT` to a server that hangs forever.
        let _ = tokio::time::timeout(self.timeout, self.client.quit()).await;
    }
}

impl Survey {
    fn add(&mut self, command: &str, error: &Error) {
        let details = error.details();
        if details.contains("NOPERM") || details.starts_with("ERR unknown command") {
            self.forbidden.insert(command.to_owned());
        } else if details.contains("DB index is out of range") {
            self.mismatch = Some(NO_DATABASE);
        }
    }
}

/// Returns the address of a node of `CLUSTER SLOTS`. A null host means the host that was asked.
fn address_of(node: &[Value], asked: Option<&Server>) -> Option<(String, u16)> {
    let [host, port, ..] = node else { return None };
    let host = match host {
        Value::Null => asked?.host.to_string(),
        host => host.as_string()?,
    };
    Some((host, u16::try_from(port.as_u64()?).ok()?))
}

/// Returns why the clients of the Cluster of `config` can't start. `None` if it is not a Cluster, if no server answers,
/// or if the reason is another one.
pub(crate) async fn cluster_problem(config: &Config, timeout: Duration) -> Option<ClusterProblem> {
    if !config.server.is_clustered() {
        return None;
    }
    let announced = match Probe::connect(config, timeout).await {
        Ok(probe) => {
            let announced = probe.announced().await;
            probe.close().await;
            announced
        }
        Err(error) => Err(error),
    };
    let announced = match announced {
        Ok(announced) => announced,
        Err(error) => return forbidden_command(&error).map(ClusterProblem::Forbidden),
    };
    let reached = announced.into_iter().map(|(host, port)| async move {
        let connected = tokio::time::timeout(timeout, TcpStream::connect((host.as_str(), port))).await;
        let source = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).err()?;
        Some(ClusterProblem::Unreachable { address: format!("{host}:{port}"), source })
    });
    join_all(reached).await.into_iter().flatten().next()
}
