//! Digests by which retries of requests are recognised.

use sha2::{Digest as _, Sha256};

use super::KeyId;

/// Identifies a request that creates a key, by the digest of its caller, its operation and target, and the
/// `request_id` that the client chose for it (as in [AIP-155](https://google.aip.dev/155)).
///
/// Requests of different callers never have the same digest. A caller can use a `request_id` again for
/// another method or key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestDigest([u8; Self::BYTES]);

impl RequestDigest {
    /// Length of a digest in bytes.
    pub const BYTES: usize = 32;

    /// Returns the digest of a request of `actor` to create a key.
    #[must_use]
    pub fn of_creation(actor: &str, request_id: &str) -> Self {
        Self::of("create", actor, "", request_id)
    }

    /// Returns the digest of a request of `actor` to rotate the key `id`. Its first byte is the first byte of
    /// the key's hash, so that a backend stores it where that key is.
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
    fn digests_distinguish_requests_by_every_part() {
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
