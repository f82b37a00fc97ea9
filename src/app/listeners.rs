//! The addresses to listen on, and the certificates of TLS.
//!
//! Addresses are bound before the backend is opened, so that an address in use is reported before a schema is
//! migrated. The server listens on them only after the backend was opened, which can take
//! `store.connect_timeout`: until then, a TCP client or a probe is refused, as by a server that does not run,
//! and is not kept waiting. A Unix socket is an exception. It listens from the beginning, because a socket
//! file that does not accept connections looks like one that a killed server left behind, which another start
//! would delete. Its clients, which are on this machine, wait until the startup ends.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::sync::watch;

use super::reload::Reloader;
use crate::config::{ListenSettings, load_tls};
use crate::server::{BoundAddress, BoundOpsAddress, Listener, OpsListener, Tls, TlsFiles};

/// The certificates of the server, and what reloads them.
#[derive(Debug)]
pub(super) struct Certificates {
    pub(super) current: watch::Receiver<Arc<Tls>>,
    pub(super) reloader: Reloader<Arc<Tls>>,
}

/// Bound addresses, which refuse connections.
#[derive(Debug)]
pub(super) struct BoundAddresses {
    /// Each address, and its name in errors.
    addresses: Vec<(BoundAddress, String)>,
    probes: Option<(BoundOpsAddress, String)>,
}

/// Addresses that the server listens on.
#[derive(Debug)]
pub(super) struct Listeners {
    pub(super) listeners: Vec<Listener>,
    /// The listener of metrics and probes. `None` if they are disabled.
    pub(super) probes: Option<OpsListener>,
}

impl Certificates {
    /// Loads the certificates in `files`. Returns `None` if TLS is disabled.
    ///
    /// # Errors
    /// Returns an error if a file can't be read or is not valid.
    pub(super) fn load(files: Option<&TlsFiles>) -> Result<Option<Self>> {
        let Some(files) = files else { return Ok(None) };
        let (sender, current) = watch::channel(load_tls(files)?);
        Ok(Some(Self { current, reloader: Reloader::certificates(files.clone(), sender) }))
    }
}

impl BoundAddresses {
    /// Binds the addresses of the services, and the one of metrics and probes.
    ///
    /// # Errors
    /// Returns an error that names the address and its setting if the address is in use, may not be bound, or
    /// does not exist on this machine.
    pub(super) fn bind(listen: &[ListenSettings], probes: Option<SocketAddr>) -> Result<Self> {
        let bind = |ListenSettings { address, role, setting }: &ListenSettings| {
            let name = format!("{address} ({setting})");
            let bound = BoundAddress::bind(address, *role).with_context(|| cannot_listen(&name))?;
            anyhow::Ok((bound, name))
        };
        let bind_probes = |address: SocketAddr| {
            let name = format!("{address} (telemetry.listen)");
            let bound = BoundOpsAddress::bind(address).with_context(|| cannot_listen(&name))?;
            anyhow::Ok((bound, name))
        };
        Ok(Self {
            addresses: listen.iter().map(bind).collect::<Result<_>>()?,
            probes: probes.map(bind_probes).transpose()?,
        })
    }

    /// Listens on the addresses. From now on, connections wait until the server accepts them.
    ///
    /// # Errors
    /// Returns an error that names the address and its setting if another process began to listen on it after
    /// it was bound.
    pub(super) fn listen(self) -> Result<Listeners> {
        let listen =
            |(address, name): (BoundAddress, String)| address.listen().with_context(|| cannot_listen(&name));
        let listen_probes = |(address, name): (BoundOpsAddress, String)| {
            address.listen().with_context(|| cannot_listen(&name))
        };
        Ok(Listeners {
            listeners: self.addresses.into_iter().map(listen).collect::<Result<_>>()?,
            probes: self.probes.map(listen_probes).transpose()?,
        })
    }
}

fn cannot_listen(name: &str) -> String {
    format!("can't listen on {name}")
}
