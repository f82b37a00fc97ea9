//! Table of the methods that are served, with everything that the server needs to know before it reads a message.

use crate::service::Permission;

/// Maximum size of a message to `Validator` in bytes: larger than a key and 64 scopes of 128 characters.
pub(crate) const MAX_VALIDATOR_BYTES: usize = 16 * 1024;
/// Maximum size of a message to `KeyStore` in bytes: larger than the largest key that the domain allows, which takes 90
/// KiB.
pub(crate) const MAX_KEY_STORE_BYTES: usize = 128 * 1024;
/// Maximum size of a message to health and reflection in bytes: larger than any name.
pub(crate) const MAX_SMALL_BYTES: usize = 4 * 1024;

/// The path of `Validator/Validate`.
pub(crate) const VALIDATE: &str = "/keyvouch.v1.Validator/Validate";
pub(super) const WATCH_CHANGES: &str = "/keyvouch.v1.Validator/WatchChanges";
pub(super) const STREAM_KEYS: &str = "/keyvouch.v1.KeyStore/StreamKeys";
pub(super) const IMPORT_KEYS: &str = "/keyvouch.v1.KeyStore/ImportKeys";

/// A method of a service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Method {
    /// `/package.Service/Method`.
    pub(crate) path: &'static str,
    pub(crate) service: Service,
    pub(super) access: Access,
    /// Whether its stream ends only with its connection.
    pub(crate) is_long_lived: bool,
    pub(crate) message: Message,
}

/// A gRPC service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    Validator,
    KeyStore,
    /// `grpc.health.v1`.
    Health,
    /// `grpc.reflection`.
    Reflection,
}

/// Callers that may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Every client.
    Public,
    /// Callers with the permission; if `validator.access` is `open`, every client.
    Configured(Permission),
    /// Callers with the permission.
    Restricted(Permission),
}

/// When the message of a call is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// Completely, before the call counts against any limit, so that idle requests can't exhaust one.
    BeforeCall,
    /// Completely, after the caller is authorized.
    AfterAuthorization,
    /// Incrementally, by the handler.
    Streamed,
}

/// All methods that are served.
pub(crate) static METHODS: [Method; 16] = [
    validator(VALIDATE, Access::Configured(Permission::Validate)),
    validator(WATCH_CHANGES, Access::Restricted(Permission::Read)).long_lived(),
    key_store("/keyvouch.v1.KeyStore/CreateKey", Permission::Write),
    key_store("/keyvouch.v1.KeyStore/GetKey", Permission::Read),
    key_store("/keyvouch.v1.KeyStore/ListKeys", Permission::Read),
    key_store(STREAM_KEYS, Permission::Read),
    key_store("/keyvouch.v1.KeyStore/UpdateKey", Permission::Write),
    key_store("/keyvouch.v1.KeyStore/RotateKey", Permission::Write),
    key_store("/keyvouch.v1.KeyStore/RevokeKey", Permission::Write),
    key_store("/keyvouch.v1.KeyStore/DeleteKey", Permission::Write),
    key_store(IMPORT_KEYS, Permission::Write).streamed(),
    key_store("/keyvouch.v1.KeyStore/ListEvents", Permission::Read),
    public("/grpc.health.v1.Health/Check", Service::Health),
    public("/grpc.health.v1.Health/Watch", Service::Health).long_lived(),
    reflection("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
    reflection("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"),
];

const fn validator(path: &'static str, access: Access) -> Method {
    Method { path, service: Service::Validator, access, is_long_lived: false, message: Message::BeforeCall }
}

const fn key_store(path: &'static str, permission: Permission) -> Method {
    let (service, access) = (Service::KeyStore, Access::Restricted(permission));
    Method { path, service, access, is_long_lived: false, message: Message::AfterAuthorization }
}

const fn public(path: &'static str, service: Service) -> Method {
    Method { path, service, access: Access::Public, is_long_lived: false, message: Message::BeforeCall }
}

const fn reflection(path: &'static str) -> Method {
    public(path, Service::Reflection).streamed().long_lived()
}

impl Method {
    const fn long_lived(self) -> Self {
        Self { is_long_lived: true, ..self }
    }

    const fn streamed(self) -> Self {
        Self { message: Message::Streamed, ..self }
    }

    /// Returns whether its calls change keys.
    pub(crate) fn makes_changes(&self) -> bool {
        self.access == Access::Restricted(Permission::Write)
    }

    /// Returns the method that `path` calls. `None` if no service has it.
    pub(crate) fn of(path: &str) -> Option<&'static Self> {
        METHODS.iter().find(|method| method.path == path)
    }
}

impl Service {
    /// Maximum size of a message in bytes.
    pub(crate) fn max_message_bytes(self) -> usize {
        match self {
            Self::Validator => MAX_VALIDATOR_BYTES,
            Self::KeyStore => MAX_KEY_STORE_BYTES,
            Self::Health | Self::Reflection => MAX_SMALL_BYTES,
        }
    }
}

/// Returns the name of the method at `path`, without the leading slash.
pub(super) fn name(path: &'static str) -> &'static str {
    path.trim_start_matches('/')
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;

    use super::*;
    use crate::grpc::pb;

    /// A path, and whether its requests are streams.
    type Described = BTreeSet<(String, bool)>;

    #[test]
    fn the_table_has_the_methods_of_the_descriptors() {
        let descriptors = [
            pb::FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let mut described = Described::new();
        for descriptor in descriptors {
            for file in prost_types::FileDescriptorSet::decode(descriptor).unwrap().file {
                for service in &file.service {
                    for method in &service.method {
                        let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                        described.insert((path, method.client_streaming()));
                    }
                }
            }
        }
        let table: Described = METHODS
            .iter()
            .map(|method| (method.path.to_owned(), method.message == Message::Streamed))
            .collect();
        assert_eq!(table, described);
    }

    #[test]
    fn only_validator_and_public_methods_are_open() {
        for method in &METHODS {
            let is_public = matches!(method.service, Service::Health | Service::Reflection);
            assert_eq!(method.access == Access::Public, is_public, "{}", method.path);
            if matches!(method.access, Access::Configured(_)) {
                assert_eq!(method.service, Service::Validator, "{}", method.path);
            }
        }
    }
}
