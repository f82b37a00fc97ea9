//! `[server]`

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::{ConfigError, HumanDuration};

/// Where and how calls are served.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Addresses to listen on: `IP:port`, or `unix:/path` for a Unix socket. Port 0 takes a free one.
    #[serde(deserialize_with = "one_or_many")]
    pub listen: Vec<String>,
    /// Single-threaded runtimes that serve connections; 0: one a core.
    pub workers: usize,
    /// Connections at one time; further ones are closed at once.
    pub max_connections: usize,
    /// Calls at one time on one connection; further ones wait in the client.
    pub max_streams_per_connection: u32,
    /// How long a new connection may take to begin with HTTP/2; a silent one is closed then.
    pub handshake_timeout: HumanDuration,
    /// After SIGTERM: how long calls in flight and open connections may take to end.
    pub drain_timeout: HumanDuration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: vec!["127.0.0.1:50051".into()],
            workers: 0,
            max_connections: 10_000,
            max_streams_per_connection: 250,
            handshake_timeout: HumanDuration(Duration::from_secs(10)),
            drain_timeout: HumanDuration(Duration::from_secs(10)),
        }
    }
}

impl ServerConfig {
    /// The addresses to listen on.
    pub fn addresses(&self) -> Result<Vec<ListenAddr>, ConfigError> {
        if self.listen.is_empty() {
            return Err(ConfigError::invalid("server.listen", "is empty: give an address"));
        }
        self.listen.iter().map(|address| ListenAddr::parse(address)).collect()
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let at_least_one = "must be at least 1";
        if self.max_connections == 0 {
            return Err(ConfigError::invalid("server.max_connections", at_least_one));
        }
        if self.max_streams_per_connection == 0 {
            return Err(ConfigError::invalid("server.max_streams_per_connection", at_least_one));
        }
        if self.handshake_timeout.0.is_zero() {
            return Err(ConfigError::invalid("server.handshake_timeout", "must be more than zero"));
        }
        Ok(())
    }
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddr {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl ListenAddr {
    fn parse(address: &str) -> Result<Self, ConfigError> {
        if let Some(path) = address.strip_prefix("unix:") {
            if path.is_empty() {
                return Err(ConfigError::invalid("server.listen", "has no path after `unix:`"));
            }
            return Ok(Self::Unix(path.into()));
        }
        address.parse().map(Self::Tcp).map_err(|_| {
            let problem = format!(
                "`{address}` is no address: give IP:port, for example 127.0.0.1:50051, or unix:/path"
            );
            ConfigError::invalid("server.listen", problem)
        })
    }

    /// Whether only this machine can reach it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp(address) => match address.ip() {
                IpAddr::V4(ip) => ip.is_loopback(),
                IpAddr::V6(ip) => ip.to_canonical().is_loopback(),
            },
        }
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_unix_sockets_are_local() {
        for local in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "unix:/run/kv.sock"] {
            assert!(ListenAddr::parse(local).unwrap().is_local(), "{local}");
        }
        for open in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[::ffff:192.0.2.1]:1"] {
            assert!(!ListenAddr::parse(open).unwrap().is_local(), "{open}");
        }
        for bad in ["", "localhost", "127.0.0.1", "http://127.0.0.1:1", "unix:"] {
            assert!(ListenAddr::parse(bad).is_err(), "{bad}");
        }
    }
}
