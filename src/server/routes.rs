//! The services of each listen address.

use tonic::service::Routes;

use super::Services;
use super::call::BufferMessage;
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

/// Returns the services of `role`.
pub(crate) fn routes(services: &Services, role: Role) -> Result<Routes, tonic_reflection::server::Error> {
    let mut routes = Routes::builder();
    if role != Role::KeyStore {
        let validator =
            ValidatorServer::new(services.validator.clone()).max_decoding_message_size(MAX_VALIDATOR_BYTES);
        let guard = Guard::new(validator, services.validator_auth.clone());
        routes.add_service(guard.with_access(services.validator_access));
    }
    if role != Role::Validator {
        let key_store =
            KeyStoreServer::new(services.key_store.clone()).max_decoding_message_size(MAX_KEY_STORE_BYTES);
        routes.add_service(Guard::new(BufferMessage(key_store), services.key_store_auth.clone()));
    }
    let health = tonic_health::server::HealthService::from_health_reporter(services.health.clone());
    let health = tonic_health::pb::health_server::HealthServer::new(health);
    routes.add_service(health.max_decoding_message_size(MAX_SMALL_BYTES));
    if !services.has_reflection {
        return Ok(routes.routes().prepare());
    }
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    routes.add_service(reflection().build_v1()?.max_decoding_message_size(MAX_SMALL_BYTES));
    // Older clients support only this version, such as Python's grpcio-reflection, and Postman before 2023.
    routes.add_service(reflection().build_v1alpha()?.max_decoding_message_size(MAX_SMALL_BYTES));
    Ok(routes.routes().prepare())
}
