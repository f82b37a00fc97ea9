//! Reads the settings. No other part of `app` does, except [`store`](super::store), which opens the backend.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use super::token_file;
use crate::cache::StackOptions;
use crate::config::{AdminConfig, Config, ServerConfig};
use crate::domain::KeyFormat;
use crate::grpc::{CertificateNames, ValidatorAccess};
use crate::server::{CallLimits, ListenAddr, Role, ServerOptions, TlsFiles};

/// The options of a server's parts, parsed from the settings.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) listeners: ListenerOptions,
    pub(super) access: AccessOptions,
    pub(super) caches: StackOptions,
    pub(super) services: ServiceOptions,
    pub(super) server: ServerOptions,
    pub(super) tasks: TaskOptions,
    /// Time in which calls are still accepted after the shutdown began.
    pub(super) settle_delay: Duration,
}

/// Addresses and certificates.
#[derive(Debug)]
pub(super) struct ListenerOptions {
    /// The addresses, each with its services and the setting that it comes from.
    pub(super) addresses: Vec<(ListenAddr, Role, &'static str)>,
    /// The address of metrics and probes. `None` disables them.
    pub(super) probes: Option<SocketAddr>,
    /// The certificate files. `None` disables TLS.
    pub(super) tls: Option<TlsFiles>,
}

/// Credentials of callers.
#[derive(Debug)]
pub(super) struct AccessOptions {
    /// The source of the administrators' tokens.
    pub(super) admin: AdminConfig,
    /// The file of the token that the first startup generates. `None` if replicas can share the backend, so
    /// that tokens have to be configured.
    pub(super) token_file: Option<PathBuf>,
    pub(super) certificates: CertificateNames,
    /// Whether only this machine can reach all addresses.
    pub(super) is_local: bool,
}

/// Options of the services and of the layer around calls.
#[derive(Debug)]
pub(super) struct ServiceOptions {
    pub(super) key_format: Arc<KeyFormat>,
    pub(super) max_staleness: Duration,
    pub(super) min_staleness: Duration,
    pub(super) validator_access: ValidatorAccess,
    pub(super) has_reflection: bool,
    pub(super) calls: CallLimits,
}

/// Options of the background tasks.
#[derive(Debug)]
pub(super) struct TaskOptions {
    /// Interval between flushes of usage.
    pub(super) flush_interval: Duration,
    /// Time after which events are deleted. `None` keeps them.
    pub(super) event_retention: Option<Duration>,
    /// Time after which expired keys are deleted. `None` keeps them.
    pub(super) expired_for: Option<Duration>,
    /// Interval between scans for expired keys.
    pub(super) prune_interval: Duration,
    /// Interval between checks of certificate and token files.
    pub(super) reload_interval: Duration,
}

impl Options {
    /// Checks and parses `config`.
    ///
    /// # Errors
    /// Returns an error if a setting is not valid.
    pub(super) fn read(config: &Config) -> Result<Self> {
        config.check()?;
        Ok(Self {
            listeners: ListenerOptions {
                addresses: config.server.addresses()?,
                probes: config.telemetry.address()?,
                tls: config.server.tls.files()?,
            },
            access: AccessOptions {
                admin: config.admin.clone(),
                token_file: token_file::path(&config.store.place()?),
                certificates: CertificateNames {
                    admin: config.admin.client_certificates.clone(),
                    validator: config.validator.client_certificates.clone(),
                },
                is_local: config.server.is_local()?,
            },
            caches: config.cache.stack_options(&config.feed),
            services: ServiceOptions {
                key_format: Arc::new(config.keys.format()?),
                max_staleness: config.cache.max_staleness.0,
                min_staleness: config.cache.min_staleness.0,
                validator_access: config.validator.access,
                has_reflection: config.server.reflection,
                calls: CallLimits {
                    max_calls: config.server.max_calls,
                    timeout: config.server.call_timeout.0,
                },
            },
            server: server_options(&config.server),
            tasks: TaskOptions {
                flush_interval: config.usage.flush_interval.0,
                event_retention: config.events.retention(),
                expired_for: config.prune.expired_for(),
                prune_interval: config.prune.interval.0,
                reload_interval: config.server.tls.reload_interval.0,
            },
            settle_delay: config.server.settle_delay.0,
        })
    }
}

fn server_options(config: &ServerConfig) -> ServerOptions {
    let unless_zero = |duration: Duration| (!duration.is_zero()).then_some(duration);
    ServerOptions {
        workers: config.workers,
        max_connections: config.max_connections,
        max_connections_per_peer: config.max_connections_per_peer,
        max_streams_per_connection: config.max_streams_per_connection,
        max_streams: config.max_streams,
        max_connection_age: unless_zero(config.max_connection_age.0),
        idle_timeout: unless_zero(config.idle_timeout.0),
        handshake_timeout: config.handshake_timeout.0,
        drain_timeout: config.drain_timeout.0,
    }
}
