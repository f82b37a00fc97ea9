//! The public identifier of a key.

use std::fmt;

use uuid::Uuid;

use super::{Entropy, EntropyError, InvalidField, KeyHash, Timestamp};

/// The id of a key: a UUID version 7 (RFC 9562). Ids therefore sort by creation time.
///
/// The last byte of an id is the first byte of the key's hash. A backend that distributes keys by their hash
/// can therefore locate a key by its id, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(Uuid);

impl KeyId {
    /// Returns a new id for the key with `hash`.
    ///
    /// # Errors
    /// The source of random bytes failed.
    pub fn generate(now: Timestamp, hash: &KeyHash, entropy: &dyn Entropy) -> Result<Self, EntropyError> {
        let mut random = [0; 10];
        entropy.fill(&mut random)?;
        random[9] = hash.as_bytes()[0];
        Ok(Self(uuid::Builder::from_unix_timestamp_millis(now.as_unix_millis(), &random).into_uuid()))
    }

    /// Returns whether this id has the form that [`KeyId::generate`] gives to the key with `hash`. All stored
    /// keys have ids of this form.
    #[must_use]
    pub fn belongs_to(&self, hash: &KeyHash) -> bool {
        self.0.get_version_num() == 7 && self.hash_byte() == hash.as_bytes()[0]
    }

    /// Returns the first byte of the hash that this id [belongs to](Self::belongs_to).
    #[must_use]
    pub fn hash_byte(self) -> u8 {
        self.0.as_bytes()[15]
    }

    /// Parses the hyphenated form of an id, in upper or lower case (RFC 9562, section 4).
    ///
    /// # Errors
    /// `text` has any other form. The error names `field`.
    pub fn parse(field: &str, text: &str) -> Result<Self, InvalidField> {
        // Other spellings are rejected, so that an id can be searched for in logs and audit trails.
        match Uuid::try_parse(text) {
            Ok(id) if id.hyphenated().encode_lower(&mut Uuid::encode_buffer()).eq_ignore_ascii_case(text) => {
                Ok(Self(id))
            }
            _ => {
                Err(InvalidField::new(field, "is not a valid key id; use the UUID that the server returned"))
            }
        }
    }

    /// Returns the id with this UUID, for example one that was stored.
    #[must_use]
    pub fn from_uuid(id: Uuid) -> Self {
        Self(id)
    }

    /// Returns the id as a UUID.
    #[must_use]
    pub fn as_uuid(&self) -> Uuid {
        self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Clock as _, SystemClock, SystemEntropy};

    #[test]
    fn ids_are_version_7_uuids_that_end_with_the_first_byte_of_the_hash() {
        let hash = KeyHash::of("abc");
        let now = SystemClock.now();
        let id = KeyId::generate(now, &hash, &SystemEntropy).unwrap();
        assert_eq!(id.as_uuid().get_version_num(), 7);
        assert_eq!(id.as_uuid().get_variant(), uuid::Variant::RFC4122);
        assert_eq!(id.as_uuid().as_bytes()[15], 0xba);
        let (seconds, nanos) = id.as_uuid().get_timestamp().unwrap().to_unix();
        assert_eq!(seconds * 1_000 + u64::from(nanos / 1_000_000), now.as_unix_millis());
    }

    #[test]
    fn only_the_hyphenated_form_is_accepted() {
        let text = "0190a6f0-1a2b-7c3d-8e4f-0123456789ab";
        for spelling in [text, &text.to_uppercase(), "0190A6f0-1a2B-7c3d-8e4F-0123456789aB"] {
            assert_eq!(KeyId::parse("id", spelling).unwrap().to_string(), text);
        }
        for bad in [
            "",
            "x",
            "0190a6f01a2b7c3d8e4f0123456789ab",
            "{0190a6f0-1a2b-7c3d-8e4f-0123456789ab}",
            "0190A6F01A2B7C3D8E4F0123456789AB",
            "urn:uuid:0190a6f0-1a2b-7c3d-8e4f-0123456789ab",
        ] {
            assert_eq!(KeyId::parse("id", bad).unwrap_err().field, "id");
        }
    }
}
