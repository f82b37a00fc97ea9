//! The messages, clients and servers of `keyvouch.v1`, generated from `proto/`.

#![expect(
    missing_docs,
    unused_qualifications,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    clippy::large_enum_variant,
    reason = "generated code"
)]

use std::fmt;

use prost::Message as _;

tonic::include_proto!("keyvouch.v1");

/// The descriptors of all files, with their comments, for reflection and for JSON.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("keyvouch_descriptor");

/// Replaces secrets in `Debug`.
const REDACTED: &str = "redacted";

impl fmt::Debug for ValidateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValidateRequest")
            .field("secret", &REDACTED)
            .field("required_scopes", &self.required_scopes)
            .field("scope_match", &self.scope_match())
            .finish()
    }
}

impl fmt::Debug for CreateKeyResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateKeyResponse").field("key", &self.key).field("secret", &REDACTED).finish()
    }
}

impl fmt::Debug for RotateKeyResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RotateKeyResponse")
            .field("key", &self.key)
            .field("secret", &REDACTED)
            .field("replaced", &self.replaced)
            .finish()
    }
}

impl fmt::Debug for ImportKeysRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImportKeysRequest").field("key", &self.key).field("hash", &REDACTED).finish()
    }
}

/// Returns the paths of all methods in a set of descriptors, as `/package.Service/Method`.
pub(crate) fn paths(descriptors: &[u8]) -> Vec<String> {
    // The descriptors come from the build, so decoding them never fails.
    let files = prost_types::FileDescriptorSet::decode(descriptors).unwrap_or_default().file;
    let mut paths = Vec::new();
    for file in &files {
        for service in &file.service {
            let methods = service.method.iter();
            paths.extend(
                methods.map(|method| format!("/{}.{}/{}", file.package(), service.name(), method.name())),
            );
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_of_a_message_never_shows_its_secret() {
        let secret = || "kv_secret".to_owned();
        let shown = [
            format!("{:?}", ValidateRequest { secret: secret(), ..ValidateRequest::default() }),
            format!("{:?}", CreateKeyResponse { key: None, secret: secret() }),
            format!("{:?}", RotateKeyResponse { key: None, secret: secret(), replaced: None }),
            format!(
                "{:?}",
                ImportKeysRequest { key: None, hash: secret().into_bytes(), allow_revoked_hash: false }
            ),
        ];
        for text in shown {
            assert!(
                text.contains("redacted") && !text.contains("kv_secret") && !text.contains("107"),
                "{text}"
            );
        }
    }
}
