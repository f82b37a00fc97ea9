//! What tells a retry of a request from another request.

use sha2::{Digest as _, Sha256};

use super::KeyId;

/// Identifies a request that makes a key, by the digest of who sent it, what it asks for, and the `request_id` that the
/// client chose for it (as in [AIP-155](https://google.aip.dev/155)).
///
/// Two callers can't meet each other's keys by it, and a `request_id` can be used again for another method or key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestDigest([u8; Self::BYTES]);

impl RequestDigest {
    /// Number of bytes of a digest.
    pub const BYTES: usize = 32;

    /// Returns the digest of a request of `actor` to make a key.
    #[must_use]
    pub fn of_creation(actor: &str, request_id: &str) -> Self {
        Self::of("create", actor, "", request_id)
    }

    /// Returns the digest of a request of `actor` to rotate the key `id`. It is stored where that key is: its first byte
    /// is that of the key's hash.
    #[must_use]
    pub fn of_rotation(actor: &str, id: KeyId, request_id: &str) -> Self {
        let mut digest = Self::of("rotate", actor, &id.to_string(), request_id);
        digest.0[0] = id.hash_byte();
        digest
    }

    fn of(method: &str, actor: &str, target: &str, request_id: &str) -> Self {
        let mut digest = Sha256::new();
        for part in [method, actor, target, request_id] {
            digest.update(part.len().to_be_bytes());
            digest.update(part);
        }
        Self(digest.finalize().into())
    }

    /// Returns the bytes of the digest.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::sample_key;

    #[test]
    fn requests_are_told_apart_by_all_that_identifies_them() {
        let id = sample_key().id;
        let digests = [
            RequestDigest::of_creation("a", "r"),
            RequestDigest::of_creation("b", "r"),
            RequestDigest::of_creation("a", "s"),
            RequestDigest::of_creation("ar", ""),
            RequestDigest::of_rotation("a", id, "r"),
        ];
        for (at, digest) in digests.iter().enumerate() {
            assert!(!digests[..at].contains(digest), "{at}");
        }
        assert_eq!(RequestDigest::of_creation("a", "r"), digests[0]);
        assert_eq!(digests[4].as_bytes()[0], id.hash_byte());
    }
}
