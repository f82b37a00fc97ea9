//! Tests of the server: credentials, request ids, limits, health, failures of the backend, and graceful
//! shutdown.

mod background;
mod credentials;
mod drain;
mod fairness;
mod faults;
pub(crate) mod faulty;
mod floods;
mod http;
mod limits;
mod observability;
mod ops;
mod shutdown;
mod slow_clients;
mod streams;
pub(crate) mod tls;
