//! Addresses to listen on.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// An address to listen on: `IP:PORT`, or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddr {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// A text that is not a [`ListenAddr`].
#[derive(Debug, thiserror::Error)]
#[error("invalid address `{0}`: expected IP:PORT (for example 127.0.0.1:50051) or unix:/path")]
pub struct InvalidListenAddr(String);

impl FromStr for ListenAddr {
    type Err = InvalidListenAddr;

    fn from_str(address: &str) -> Result<Self, InvalidListenAddr> {
        let invalid = || InvalidListenAddr(address.to_owned());
        match address.strip_prefix("unix:") {
            Some("") => Err(invalid()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => address.parse().map(Self::Tcp).map_err(|_| invalid()),
        }
    }
}

impl ListenAddr {
    /// Returns whether only this machine can reach the address.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_unix_sockets_are_local() {
        let is_local = |address: &str| address.parse::<ListenAddr>().unwrap().is_local();
        for local in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "unix:/run/kv.sock"] {
            assert!(is_local(local), "{local}");
        }
        for open in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[::ffff:192.0.2.1]:1"] {
            assert!(!is_local(open), "{open}");
        }
    }

    #[test]
    fn an_address_is_formatted_as_it_was_parsed() {
        for address in ["127.0.0.1:50051", "[::1]:1", "unix:/run/kv.sock"] {
            assert_eq!(address.parse::<ListenAddr>().unwrap().to_string(), address);
        }
        for invalid in ["", "localhost", "127.0.0.1", "http://127.0.0.1:1", "unix:"] {
            assert!(invalid.parse::<ListenAddr>().is_err(), "{invalid}");
        }
    }
}
