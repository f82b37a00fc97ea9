//! The gRPC services. Converts requests to domain types, results to messages, and errors to statuses.

mod auth;
mod cache_only;
mod call_handler;
mod codec;
mod convert;
mod field_limit;
mod import;
mod key_store;
pub(crate) mod methods;
mod page_token;
pub mod pb;
mod peer;
mod request_id;
mod status;
mod validator;

pub(crate) use crate::service::Actor;
pub use auth::{
    AcceptedCredentials, AdminToken, AdminTokenError, Authenticator, CertificateNames, Guard, ValidatorAccess,
};
pub(crate) use auth::{rejected_actor, rejected_certificate};
pub(crate) use cache_only::CacheOnly;
pub(crate) use call_handler::{CallFuture, CallHandler};
pub(crate) use convert::to_proto_time;
pub(crate) use import::imported_key;
pub use key_store::KeyStoreHandler;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use page_token::{decode as decode_page_token, decode_event as decode_event_page_token};
pub use peer::{CertificateName, Peer};
pub use request_id::RequestId;
pub use status::ERROR_DOMAIN;
pub(crate) use status::{
    ACCEPTED_ENCODINGS, connection_ends, deadline_exceeded, from_transport, message_too_large, overloaded,
    panicked, too_many_header_fields,
};
pub use validator::ValidatorHandler;
