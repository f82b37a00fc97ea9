//! Tests of the server: credentials, permissions, limits, TLS, health, metrics, failures of the backend, and
//! graceful shutdown.

mod background;
mod call_limits;
pub(crate) mod certificates;
mod client_certificates;
mod compression;
mod connection_limits;
mod connections;
mod credentials;
mod drain;
mod fairness;
mod faults;
pub(crate) mod faulty;
mod floods;
mod http;
mod message_limits;
mod observability;
mod ops;
mod permissions;
mod shutdown;
mod slow_clients;
mod stream_credentials;
mod stream_limits;
mod streams;
mod tls;
mod wrong_protocols;
