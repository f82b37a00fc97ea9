//! `[server]`

use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

use super::{ConfigError, HumanDuration, TlsConfig};
use crate::server::{InvalidListenAddr, ListenAddr, Role};

/// Where and how calls are served.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Addresses to listen on: `IP:port`, or `unix:/path` for a Unix socket. Port 0 takes a free one.
    #[serde(deserialize_with = "one_or_many")]
    #[schemars(schema_with = "one_or_many_schema")]
    pub listen: Vec<String>,
    /// Addresses for `KeyStore` alone; then those of `listen` have `Validator` alone. Empty: they have both.
    #[serde(deserialize_with = "one_or_many")]
    #[schemars(schema_with = "one_or_many_schema")]
    pub admin_listen: Vec<String>,
    /// Single-threaded runtimes that serve connections; 0: one a core.
    pub workers: usize,
    /// Maximum number of connections. At the limit, an idle connection is closed to make room; if none is idle, the new one is
    /// rejected.
    pub max_connections: usize,
    /// Connections at one time from one address.
    pub max_connections_per_peer: usize,
    /// Calls at one time on one connection; further ones wait in the client.
    pub max_streams_per_connection: u32,
    /// Maximum number of open streams on all connections: calls in flight, calls whose message is incomplete, and watches. Further
    /// ones are rejected.
    pub max_streams: usize,
    /// Calls at one time on all connections together; further ones are refused.
    pub max_calls: usize,
    /// How long a call may take until its answer begins, if its client does not say less.
    pub call_timeout: HumanDuration,
    /// How old a connection may be, about; 0: as old as its client likes.
    pub max_connection_age: HumanDuration,
    /// How long a connection may be without a call; 0: as long as its client likes.
    pub idle_timeout: HumanDuration,
    /// How long a new connection may take to begin with HTTP/2; a silent one is closed then.
    pub handshake_timeout: HumanDuration,
    /// After SIGTERM: how long calls are still taken, so that clients have time to see that the server is not healthy.
    pub settle_delay: HumanDuration,
    /// After that: how long calls in flight and open connections may take to end.
    pub drain_timeout: HumanDuration,
    /// Serve `grpc.reflection`, which clients such as grpcurl need.
    pub reflection: bool,
    /// Encrypted connections.
    pub tls: TlsConfig,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: vec!["127.0.0.1:50051".into()],
            admin_listen: Vec::new(),
            workers: 0,
            max_connections: 10_000,
            max_connections_per_peer: 1_000,
            max_streams_per_connection: 250,
            max_streams: 20_000,
            max_calls: 10_000,
            call_timeout: HumanDuration(Duration::from_secs(30)),
            max_connection_age: HumanDuration(Duration::from_mins(30)),
            idle_timeout: HumanDuration(Duration::from_mins(15)),
            handshake_timeout: HumanDuration(Duration::from_secs(10)),
            settle_delay: HumanDuration(Duration::ZERO),
            drain_timeout: HumanDuration(Duration::from_secs(10)),
            reflection: true,
            tls: TlsConfig::default(),
        }
    }
}

impl ServerConfig {
    /// The addresses to listen on, what for, and by which setting.
    pub fn addresses(&self) -> Result<Vec<(ListenAddr, Role, &'static str)>, ConfigError> {
        const LISTEN: &str = "server.listen";
        const ADMIN_LISTEN: &str = "server.admin_listen";
        if self.listen.is_empty() {
            return Err(ConfigError::invalid(LISTEN, "is empty: give an address"));
        }
        let role = if self.admin_listen.is_empty() { Role::Both } else { Role::Validator };
        let listen = self.listen.iter().map(|address| (address, role, LISTEN));
        let admin = self.admin_listen.iter().map(|address| (address, Role::KeyStore, ADMIN_LISTEN));
        listen
            .chain(admin)
            .map(|(address, role, setting)| Ok((parse(setting, address)?, role, setting)))
            .collect()
    }

    /// Whether it is reached from this machine alone.
    pub fn is_local(&self) -> Result<bool, ConfigError> {
        Ok(self.addresses()?.iter().all(|(address, ..)| address.is_local()))
    }

    /// Where `KeyStore` can be reached, and by which setting.
    pub(super) fn key_store_addresses(&self) -> Result<Vec<(ListenAddr, &'static str)>, ConfigError> {
        let addresses = self.addresses()?.into_iter();
        Ok(addresses
            .filter(|(_, role, _)| *role != Role::Validator)
            .map(|(address, _, setting)| (address, setting))
            .collect())
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let at_least_one = "must be at least 1";
        for (setting, value) in [
            ("server.max_connections", self.max_connections),
            ("server.max_connections_per_peer", self.max_connections_per_peer),
            ("server.max_calls", self.max_calls),
            ("server.max_streams", self.max_streams),
        ] {
            if value == 0 {
                return Err(ConfigError::invalid(setting, at_least_one));
            }
        }
        if self.max_streams_per_connection == 0 {
            return Err(ConfigError::invalid("server.max_streams_per_connection", at_least_one));
        }
        for (setting, value) in
            [("server.handshake_timeout", self.handshake_timeout), ("server.call_timeout", self.call_timeout)]
        {
            if value.0.is_zero() {
                return Err(ConfigError::invalid(setting, "must be more than zero"));
            }
        }
        self.tls.check()
    }
}

fn parse(setting: &str, address: &str) -> Result<ListenAddr, ConfigError> {
    address.parse().map_err(|error: InvalidListenAddr| ConfigError::invalid(setting, error))
}

fn one_or_many_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["array", "string"], "items": { "type": "string" } })
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected an address or a list of addresses")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }

    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(address) => vec![address],
        OneOrMany::Many(addresses) => addresses,
    })
}
