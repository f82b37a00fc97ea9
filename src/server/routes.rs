//! The services of each listen address.

use tonic::codec::CompressionEncoding;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;

use super::Services;
use super::call::BufferMessage;
use super::health::HealthHandler;
use crate::grpc::Guard;
use crate::grpc::methods::{MAX_KEY_STORE_BYTES, MAX_SMALL_BYTES, MAX_VALIDATOR_BYTES};
use crate::grpc::pb::FILE_DESCRIPTOR_SET;
use crate::grpc::pb::key_store_server::KeyStoreServer;
use crate::grpc::pb::validator_server::ValidatorServer;

/// The services of an address. Every address has health, and reflection unless it is disabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Both services.
    Both,
    /// `Validator` alone.
    Validator,
    /// `KeyStore` alone.
    KeyStore,
}

impl Role {
    /// All roles.
    pub(super) const ALL: [Self; 3] = [Self::Both, Self::Validator, Self::KeyStore];
}

/// Sets the largest message that a generated server accepts, and that messages can be compressed. The limit
/// applies to messages as they are sent and as they are after decompression. Responses are not compressed: they
/// are small, and the length of a compressed response depends on the secret in it.
macro_rules! limited {
    ($server:expr, $max_bytes:expr) => {
        $server
            .max_decoding_message_size($max_bytes)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Deflate)
    };
}

/// Returns the services of `role`.
pub(crate) fn routes(services: &Services, role: Role) -> Result<Routes, tonic_reflection::server::Error> {
    let mut routes = Routes::builder();
    if role != Role::KeyStore {
        let validator = limited!(ValidatorServer::new(services.validator.clone()), MAX_VALIDATOR_BYTES);
        let guard = Guard::new(validator, services.validator_auth.clone());
        routes.add_service(guard.with_access(services.validator_access));
    }
    if role != Role::Validator {
        let key_store = limited!(KeyStoreServer::new(services.key_store.clone()), MAX_KEY_STORE_BYTES);
        routes.add_service(Guard::new(BufferMessage(key_store), services.key_store_auth.clone()));
    }
    let health = HealthServer::new(HealthHandler::new(services.health.clone()));
    routes.add_service(limited!(health, MAX_SMALL_BYTES));
    if !services.has_reflection {
        return Ok(routes.routes().prepare());
    }
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    routes.add_service(limited!(reflection().build_v1()?, MAX_SMALL_BYTES));
    // Older clients support only this version, such as Python's grpcio-reflection, and Postman before 2023.
    routes.add_service(limited!(reflection().build_v1alpha()?, MAX_SMALL_BYTES));
    Ok(routes.routes().prepare())
}
