//! Table of the methods that are served, with everything that the server needs to know before it reads a message.

use super::ValidatorAccess;
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
    pub(crate) effect: Effect,
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

impl Access {
    /// Returns the permission that a caller needs. `None` if every client may call the method. `configured` is the rule
    /// for methods whose access is configured.
    pub(super) fn permission(self, configured: ValidatorAccess) -> Option<Permission> {
        match (self, configured) {
            (Self::Public, _) | (Self::Configured(_), ValidatorAccess::Open) => None,
            (Self::Configured(permission), ValidatorAccess::Credential)
            | (Self::Restricted(permission), _) => Some(permission),
        }
    }
}

/// Effect of the calls of a method on stored keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Calls only read.
    Reads,
    /// Calls create, change or delete keys.
    Changes,
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
    key_store("/keyvouch.v1.KeyStore/CreateKey", Permission::Write, Effect::Changes),
    key_store("/keyvouch.v1.KeyStore/GetKey", Permission::Read, Effect::Reads),
    key_store("/keyvouch.v1.KeyStore/ListKeys", Permission::Read, Effect::Reads),
    key_store(STREAM_KEYS, Permission::Read, Effect::Reads),
    key_store("/keyvouch.v1.KeyStore/UpdateKey", Permission::Write, Effect::Changes),
    key_store("/keyvouch.v1.KeyStore/RotateKey", Permission::Write, Effect::Changes),
    key_store("/keyvouch.v1.KeyStore/RevokeKey", Permission::Write, Effect::Changes),
    key_store("/keyvouch.v1.KeyStore/DeleteKey", Permission::Write, Effect::Changes),
    key_store(IMPORT_KEYS, Permission::Write, Effect::Changes).streamed(),
    key_store("/keyvouch.v1.KeyStore/ListEvents", Permission::Read, Effect::Reads),
    public("/grpc.health.v1.Health/Check", Service::Health),
    public("/grpc.health.v1.Health/Watch", Service::Health).long_lived(),
    reflection("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
    reflection("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"),
];

const fn validator(path: &'static str, access: Access) -> Method {
    read_only(path, Service::Validator, access)
}

const fn key_store(path: &'static str, permission: Permission, effect: Effect) -> Method {
    let (service, access) = (Service::KeyStore, Access::Restricted(permission));
    let message = Message::AfterAuthorization;
    Method { path, service, access, effect, is_long_lived: false, message }
}

const fn public(path: &'static str, service: Service) -> Method {
    read_only(path, service, Access::Public)
}

const fn read_only(path: &'static str, service: Service, access: Access) -> Method {
    let (effect, message) = (Effect::Reads, Message::BeforeCall);
    Method { path, service, access, effect, is_long_lived: false, message }
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

    /// Returns the method that `path` calls. `None` if no service has it.
    pub(crate) fn of(path: &str) -> Option<&'static Self> {
        METHODS.iter().find(|method| method.path == path)
    }

    /// Returns the method with the name `package.Service/Method`. `None` if no service has it.
    pub(crate) fn named(method_name: &str) -> Option<&'static Self> {
        METHODS.iter().find(|method| name(method.path) == method_name)
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

    /// The name of a method begins with a verb of <https://google.aip.dev/130>, or with one of this API, and says
    /// whether the method makes changes.
    #[test]
    fn methods_that_make_changes_are_marked_and_need_the_permission_to_write() {
        for method in &METHODS {
            let name = method.path.rsplit('/').next().unwrap();
            let begins_with = |verbs: &[&str]| verbs.iter().any(|verb| name.starts_with(verb));
            let changes = begins_with(&["Create", "Update", "Rotate", "Revoke", "Delete", "Import"]);
            let reads =
                begins_with(&["Validate", "Get", "List", "Stream", "Watch", "Check", "ServerReflectionInfo"]);
            assert!(changes != reads, "{name}: add its verb to one of the lists");
            assert_eq!(method.effect == Effect::Changes, changes, "{name}");
            assert_eq!(method.access == Access::Restricted(Permission::Write), changes, "{name}");
        }
    }

    #[test]
    fn only_configured_methods_depend_on_the_access_rule() {
        for access in [ValidatorAccess::Open, ValidatorAccess::Credential] {
            assert_eq!(Access::Public.permission(access), None);
            assert_eq!(Access::Restricted(Permission::Read).permission(access), Some(Permission::Read));
        }
        let configured = Access::Configured(Permission::Validate);
        assert_eq!(configured.permission(ValidatorAccess::Open), None);
        assert_eq!(configured.permission(ValidatorAccess::Credential), Some(Permission::Validate));
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
