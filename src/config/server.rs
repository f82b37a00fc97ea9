//! `[server]`

use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

use super::{ConfigError, HumanDuration, TlsConfig};
use crate::server::{CallLimits, InvalidListenAddr, ListenAddr, Role, ServerOptions, TlsFiles};

/// Listeners, limits and timeouts of the server.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Address to listen on, or a list of addresses: `IP:port`, or `unix:/path`. Port 0 takes a free port. A Unix
    /// socket is accessible to the user and the group of the server.
    #[serde(deserialize_with = "one_or_many")]
    #[schemars(schema_with = "one_or_many_schema")]
    pub listen: Vec<String>,
    /// Addresses that serve only `KeyStore`; the addresses of `server.listen` then serve only `Validator`. Empty:
    /// `server.listen` serves both. Health and reflection are served on all addresses.
    #[serde(deserialize_with = "one_or_many")]
    #[schemars(schema_with = "one_or_many_schema")]
    pub admin_listen: Vec<String>,
    /// Number of single-threaded runtimes that serve connections. 0 means one per core.
    pub workers: usize,
    /// Maximum number of connections. At the limit, an idle connection is closed to make room; if none is idle, the new
    /// one is rejected. `server.admin_listen` and Unix sockets have 64 additional connections.
    pub max_connections: usize,
    /// Maximum number of concurrent connections from one address. Raise it where all clients connect through one proxy
    /// that opens more connections; lower it where clients have addresses of their own.
    pub max_connections_per_peer: usize,
    /// Maximum number of concurrent calls on one connection. Further calls wait in the client.
    pub max_streams_per_connection: u32,
    /// Maximum number of open streams on all connections. Calls in flight, calls whose message is incomplete, and
    /// `WatchChanges` count. Streams of `server.admin_listen` and Unix sockets don't count. At the limit, the address
    /// with the most held streams loses a connection. While more than half of the limit is used, one address can have
    /// at most a quarter of it.
    pub max_streams: usize,
    /// Maximum number of concurrent calls of `Validator` and reflection on all connections. Health calls don't count.
    /// At the limit, further calls are answered only from memory. If that is not possible, they are rejected
    /// immediately with `RESOURCE_EXHAUSTED`. `KeyStore` has two limits of its own, each a tenth of this number: one for
    /// changes, one for calls that read.
    pub max_calls: usize,
    /// Maximum time until the response of a call begins, if the client does not set a shorter one (`grpc-timeout`).
    /// Must be more than 0.
    pub call_timeout: HumanDuration,
    /// Maximum connection age, jittered by ±10 %. At this age the server asks the client to open another connection
    /// (GOAWAY) and completes the calls in flight first. Clients therefore spread over added servers. 0 means no limit.
    pub max_connection_age: HumanDuration,
    /// Maximum time of a connection without a call. 0 means no limit.
    pub idle_timeout: HumanDuration,
    /// Maximum time until a new connection begins with HTTP/2. Connections that take longer are closed. Must be more
    /// than 0.
    pub handshake_timeout: HumanDuration,
    /// Time after SIGTERM or SIGINT in which calls are still accepted while health reports NOT_SERVING, so that load
    /// balancers can detect it.
    pub settle_delay: HumanDuration,
    /// Maximum time for calls in flight and open connections to end after SIGTERM or SIGINT. After that time, they are
    /// ended. A second signal ends the process immediately. The setting also limits the time for the streams of a
    /// connection to end once the connection has reached its maximum age or idle time.
    pub drain_timeout: HumanDuration,
    /// Whether `grpc.reflection` is served. Clients such as grpcurl and `buf curl` need it.
    pub reflection: bool,
    /// TLS.
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

/// The parsed settings of `[server]`.
#[derive(Clone, Debug)]
pub(crate) struct ServerSettings {
    pub(crate) listen: Vec<ListenSettings>,
    pub(crate) options: ServerOptions,
    pub(crate) calls: CallLimits,
    pub(crate) settle_delay: Duration,
    pub(crate) has_reflection: bool,
    /// The files of TLS. `None` if TLS is disabled.
    pub(crate) tls: Option<TlsFiles>,
}

/// An address to listen on.
#[derive(Clone, Debug)]
pub(crate) struct ListenSettings {
    pub(crate) address: ListenAddr,
    /// The services of the address.
    pub(crate) role: Role,
    /// The setting that has the address.
    pub(crate) setting: &'static str,
}

impl ServerSettings {
    /// Returns whether only this machine can reach all addresses.
    pub(crate) fn is_local(&self) -> bool {
        self.listen.iter().all(|listen| listen.address.is_local())
    }
}

impl ServerConfig {
    pub(super) fn parse(&self) -> Result<ServerSettings, ConfigError> {
        let listen = self.listen()?;
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
        Ok(ServerSettings {
            listen,
            options: self.options(),
            calls: CallLimits { max_calls: self.max_calls, timeout: self.call_timeout.0 },
            settle_delay: self.settle_delay.0,
            has_reflection: self.reflection,
            tls: self.tls.parse()?,
        })
    }

    fn listen(&self) -> Result<Vec<ListenSettings>, ConfigError> {
        const LISTEN: &str = "server.listen";
        const ADMIN_LISTEN: &str = "server.admin_listen";
        if self.listen.is_empty() {
            return Err(ConfigError::invalid(LISTEN, "must not be empty; set at least one address"));
        }
        let role = if self.admin_listen.is_empty() { Role::Both } else { Role::Validator };
        let listen = self.listen.iter().map(|address| (address, role, LISTEN));
        let admin = self.admin_listen.iter().map(|address| (address, Role::KeyStore, ADMIN_LISTEN));
        let parse = |(address, role, setting): (&String, Role, &'static str)| {
            Ok(ListenSettings { address: parse_address(setting, address)?, role, setting })
        };
        listen.chain(admin).map(parse).collect()
    }

    fn options(&self) -> ServerOptions {
        let unless_zero = |duration: HumanDuration| (!duration.0.is_zero()).then_some(duration.0);
        ServerOptions {
            workers: self.workers,
            max_connections: self.max_connections,
            max_connections_per_peer: self.max_connections_per_peer,
            max_streams_per_connection: self.max_streams_per_connection,
            max_streams: self.max_streams,
            max_connection_age: unless_zero(self.max_connection_age),
            idle_timeout: unless_zero(self.idle_timeout),
            handshake_timeout: self.handshake_timeout.0,
            drain_timeout: self.drain_timeout.0,
        }
    }
}

fn parse_address(setting: &str, address: &str) -> Result<ListenAddr, ConfigError> {
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
