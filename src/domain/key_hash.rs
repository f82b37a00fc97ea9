//! The digest under which a key is stored and looked up.

use std::fmt;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// SHA-256 of a whole key string. A key has 256 random bits, so neither a salt nor a slow hash is needed.
///
/// `Debug` hides it, because for an attacker who can change what the backend returns, the hash is as good as
/// the key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash([u8; Self::BYTES]);

impl KeyHash {
    /// Length of the digest in bytes.
    pub const BYTES: usize = 32;

    /// Returns the digest of the key string `secret`.
    #[must_use]
    pub fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }

    /// Returns the digest with these bytes, for example one that was stored.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// Returns the digest with these bytes. `None` if they have another length than a digest.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Returns the bytes of the digest.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// Returns the digest in lowercase hexadecimal, for backends that store names or documents instead of
    /// bytes.
    #[must_use]
    pub fn to_hex(&self) -> String {
        HEXLOWER.encode(&self.0)
    }

    /// Parses a string that [`to_hex`](Self::to_hex) returned. `None` for any other string.
    #[must_use]
    pub fn from_hex(hex: &str) -> Option<Self> {
        HEXLOWER.decode(hex.as_bytes()).ok()?.try_into().ok().map(Self)
    }

    /// Returns whether both digests are equal. The time that this takes does not depend on where they differ.
    #[must_use]
    pub fn is_same_in_constant_time(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_sha_256_of_the_whole_string() {
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let hash = KeyHash::of("abc");
        assert_eq!(hash.to_hex(), expected);
        assert_eq!(KeyHash::from_hex(expected), Some(hash));
        assert_eq!(KeyHash::from_hex(&expected[2..]), None);
        assert_eq!(KeyHash::from_hex(&expected.to_uppercase()), None);
    }

    #[test]
    fn debug_hides_the_content() {
        assert_eq!(format!("{:?}", KeyHash::of("abc")), "KeyHash(redacted)");
    }

    #[test]
    fn comparison_in_constant_time_agrees_with_equality() {
        assert!(KeyHash::of("a").is_same_in_constant_time(&KeyHash::of("a")));
        assert!(!KeyHash::of("a").is_same_in_constant_time(&KeyHash::of("b")));
    }
}
