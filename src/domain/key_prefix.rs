//! Prefixes of key strings.

use std::fmt;

use super::InvalidField;

/// The readable prefix of a key string: up to 16 characters of `a-z0-9_`, ending in `_` unless empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyPrefix(String);

impl KeyPrefix {
    /// Maximum length of a prefix in characters.
    pub const MAX_CHARS: usize = 16;

    /// Checks that `prefix` is valid.
    ///
    /// # Errors
    /// It is too long, has another character, or does not end in `_`. The error names `field`.
    pub fn parse(field: &str, prefix: impl Into<String>) -> Result<Self, InvalidField> {
        let prefix = prefix.into();
        let known = prefix.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        let ends_well = prefix.is_empty() || prefix.ends_with('_');
        if prefix.len() > Self::MAX_CHARS || !known || !ends_well {
            let problem = format!(
                "is not a valid key prefix; use up to {} characters of a-z, 0-9 and _, ending in _",
                Self::MAX_CHARS
            );
            return Err(InvalidField::new(field, problem));
        }
        Ok(Self(prefix))
    }

    /// Returns the prefix as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_lowercase_prefixes_with_a_final_underscore_are_valid() {
        for good in ["", "kv_", "prod_eu_1_", "_", "abcdefghijklmno_"] {
            assert_eq!(KeyPrefix::parse("p", good).unwrap().as_str(), good);
        }
        for bad in ["kv", "KV_", "kv-", "ü_", "abcdefghijklmnop_", "k v_"] {
            assert_eq!(KeyPrefix::parse("keys.prefix", bad).unwrap_err().field, "keys.prefix", "{bad}");
        }
    }
}
