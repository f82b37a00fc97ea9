//! The key string itself. Only its owner keeps it.

use std::fmt;

use zeroize::Zeroizing;

use super::{Entropy, EntropyError, KeyHash, KeyPrefix};

/// Length of the random part in characters: 256 bits in base 62.
pub(super) const BODY_CHARS: usize = 43;
/// Length of the checksum in characters: 32 bits in base 62.
pub(super) const CHECKSUM_CHARS: usize = 6;

const RANDOM_BYTES: usize = 32;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A whole key string: `<prefix><43 base62 characters of 32 random bytes><6 base62 characters of CRC-32>`.
///
/// The string is overwritten when it is dropped, `Debug` hides it, and it has no `Display`. New keys are made
/// by [`SecretKey::generate`], and presented keys are parsed by
/// [`KeyFormat::parse`](super::KeyFormat::parse).
#[derive(Clone)]
pub struct SecretKey(Zeroizing<String>);

impl SecretKey {
    /// Returns a new random key.
    ///
    /// # Errors
    /// The source of random bytes failed.
    pub fn generate(prefix: &KeyPrefix, entropy: &dyn Entropy) -> Result<Self, EntropyError> {
        let mut random = Zeroizing::new([0; RANDOM_BYTES]);
        entropy.fill(random.as_mut_slice())?;
        let body = Zeroizing::new(base62::<BODY_CHARS>(random));
        let checksum = checksum(body.as_slice());

        let length = prefix.as_str().len() + BODY_CHARS + CHECKSUM_CHARS;
        let mut secret = Zeroizing::new(String::with_capacity(length));
        secret.push_str(prefix.as_str());
        secret.extend(body.iter().chain(&checksum).map(|&byte| char::from(byte)));
        Ok(Self(secret))
    }

    /// Wraps `secret` without checking its form.
    pub(super) fn from_string(secret: String) -> Self {
        Self(Zeroizing::new(secret))
    }

    /// Returns the key string. It must only be sent to its owner.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns the digest under which the key is stored.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        KeyHash::of(&self.0)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(redacted)")
    }
}

/// Returns the checksum of `body` by GitHub's rule: CRC-32 (IEEE) in base 62, left-padded with `0`.
/// <https://github.blog/engineering/platform-security/behind-githubs-new-authentication-token-formats/>
pub(super) fn checksum(body: &[u8]) -> [u8; CHECKSUM_CHARS] {
    base62(Zeroizing::new(crc32fast::hash(body).to_be_bytes()))
}

/// Returns the big-endian number `bytes` in base 62, in exactly `CHARS` digits. `CHARS` has to be large
/// enough.
fn base62<const CHARS: usize>(mut bytes: Zeroizing<impl AsMut<[u8]> + zeroize::Zeroize>) -> [u8; CHARS] {
    let mut digits = [b'0'; CHARS];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[usize::from(divide_by_62(bytes.as_mut()))];
    }
    digits
}

/// Divides the big-endian number in place and returns the remainder.
fn divide_by_62(number: &mut [u8]) -> u8 {
    let mut remainder: u16 = 0;
    for byte in number {
        let dividend = remainder << 8 | u16::from(*byte);
        // Both results fit, because the dividend is below 62 * 256.
        *byte = (dividend / 62).to_le_bytes()[0];
        remainder = dividend % 62;
    }
    remainder.to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::SystemEntropy;

    #[derive(Debug)]
    struct Fixed([u8; RANDOM_BYTES]);

    impl Entropy for Fixed {
        fn fill(&self, bytes: &mut [u8]) -> Result<(), EntropyError> {
            bytes.copy_from_slice(&self.0);
            Ok(())
        }
    }

    #[derive(Debug)]
    struct Dry;

    impl Entropy for Dry {
        fn fill(&self, _: &mut [u8]) -> Result<(), EntropyError> {
            Err(EntropyError("dry".into()))
        }
    }

    fn prefix() -> KeyPrefix {
        KeyPrefix::parse("prefix", "kv_").unwrap()
    }

    #[test]
    fn the_checksum_is_that_of_github() {
        assert_eq!(&checksum(b"zQWBuTSOoRi4A9spHcVY5ncnsDkxkJ"), b"0mLq17");
        assert_eq!(&checksum(b"qkJaB6MffYVzZXWqmcoF49yrUxP3wf"), b"0LsakP");
    }

    #[test]
    fn the_body_holds_all_256_bits() {
        let lowest = SecretKey::generate(&prefix(), &Fixed([0; 32])).unwrap();
        assert!(lowest.expose().starts_with(&format!("kv_{}", "0".repeat(43))));
        let mut one = [0; 32];
        one[31] = 61;
        let sixty_one = SecretKey::generate(&prefix(), &Fixed(one)).unwrap();
        assert!(sixty_one.expose()[3..46].ends_with("0z"));
        // 2^256 - 1 in base 62, computed with Python's integers.
        let highest = SecretKey::generate(&prefix(), &Fixed([0xff; 32])).unwrap();
        assert_eq!(&highest.expose()[3..46], HIGHEST);
    }

    const HIGHEST: &str = "yhjskwdA6OZ1AL1YmHWZWm8LLG7HjnuCA2j5rOw8Xp1";

    #[test]
    fn keys_have_the_stated_length_and_differ() {
        let one = SecretKey::generate(&prefix(), &SystemEntropy).unwrap();
        let two = SecretKey::generate(&prefix(), &SystemEntropy).unwrap();
        assert_eq!(one.expose().len(), 3 + 43 + 6);
        assert_ne!(one.expose(), two.expose());
    }

    #[test]
    fn without_randomness_there_is_no_key() {
        assert!(SecretKey::generate(&prefix(), &Dry).is_err());
    }

    #[test]
    fn debug_hides_the_content() {
        let key = SecretKey::generate(&prefix(), &SystemEntropy).unwrap();
        assert_eq!(format!("{key:?}"), "SecretKey(redacted)");
    }

    proptest! {
        #[test]
        fn different_bytes_make_different_keys(a: [u8; 32], b: [u8; 32]) {
            let key_a = SecretKey::generate(&prefix(), &Fixed(a)).unwrap();
            let key_b = SecretKey::generate(&prefix(), &Fixed(b)).unwrap();
            prop_assert_eq!(a == b, key_a.expose() == key_b.expose());
        }
    }
}
