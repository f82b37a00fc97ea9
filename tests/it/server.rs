//! How calls are served: credentials, ids, limits, health, faults of the store, and the end.

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
mod slow_clients;
mod streams;
pub(crate) mod tls;
