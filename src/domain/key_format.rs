//! The accepted forms of key strings.

use super::secret_key::{BODY_CHARS, CHECKSUM_CHARS, checksum};
use super::{InvalidField, KeyPrefix, SecretKey};

/// The configured forms of a key string. A string that has none of these forms is malformed and never looked
/// up.
#[derive(Clone, Debug)]
pub struct KeyFormat {
    default_prefix: KeyPrefix,
    other_prefixes: Vec<KeyPrefix>,
    accepted_prefixes: Vec<KeyPrefix>,
    foreign: Vec<ForeignPattern>,
}

/// The form of keys that another system issued and that were imported. They have no checksum that could be
/// verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignPattern {
    /// The prefix of the key strings.
    pub prefix: String,
    /// The length of the whole key string in bytes.
    pub length: usize,
}

impl KeyFormat {
    /// Returns the format of keys that are issued with one of `prefixes`, by default the first. Keys with a
    /// prefix in `accepted`, typically an older one, still validate, and so do keys that match one of the
    /// `foreign` patterns.
    ///
    /// # Errors
    /// `prefixes` is empty, or a foreign pattern is too short to match any key.
    pub fn new(
        prefixes: Vec<KeyPrefix>,
        accepted: Vec<KeyPrefix>,
        foreign: Vec<ForeignPattern>,
    ) -> Result<Self, InvalidField> {
        let mut prefixes = prefixes.into_iter();
        let Some(default_prefix) = prefixes.next() else {
            return Err(InvalidField::new(
                "keys.prefix",
                "must name at least one prefix, for example [\"kv_\"]",
            ));
        };
        if foreign.iter().any(|pattern| pattern.length <= pattern.prefix.len()) {
            let problem =
                "has a length that leaves no room after the prefix; use the length of the whole key";
            return Err(InvalidField::new("keys.foreign", problem));
        }
        Ok(Self { default_prefix, other_prefixes: prefixes.collect(), accepted_prefixes: accepted, foreign })
    }

    /// Returns the prefix of keys for which no prefix was requested.
    #[must_use]
    pub fn default_prefix(&self) -> &KeyPrefix {
        &self.default_prefix
    }

    /// Checks that keys are issued with `prefix`, and returns it.
    ///
    /// # Errors
    /// The prefix is not configured. The error names the field `prefix`.
    pub fn issued_prefix(&self, prefix: &str) -> Result<&KeyPrefix, InvalidField> {
        self.issued().find(|known| known.as_str() == prefix).ok_or_else(|| {
            let known: Vec<_> = self.issued().map(|known| format!("\"{known}\"")).collect();
            InvalidField::new("prefix", format!("is not configured; use one of {}", known.join(", ")))
        })
    }

    /// Returns the key in `secret`, or `None` if it is malformed.
    #[must_use]
    pub fn parse(&self, secret: String) -> Option<SecretKey> {
        let secret = SecretKey::from_string(secret);
        self.is_well_formed(secret.expose()).then_some(secret)
    }

    /// Returns whether `text` has the form of a secret, and therefore must not be logged: that of a key of this
    /// format, of a key with any other prefix, or of a generated admin token. Foreign forms without a prefix
    /// don't count, because any text of their length has them.
    #[must_use]
    pub fn resembles_secret(&self, text: &str) -> bool {
        let tail = text.len().checked_sub(BODY_CHARS + CHECKSUM_CHARS).and_then(|begin| text.get(begin..));
        tail.is_some_and(has_valid_checksum)
            || self.foreign.iter().any(|pattern| !pattern.prefix.is_empty() && pattern.fits(text))
    }

    fn is_well_formed(&self, secret: &str) -> bool {
        let own = self.issued().chain(&self.accepted_prefixes);
        own.filter_map(|prefix| secret.strip_prefix(prefix.as_str())).any(has_valid_checksum)
            || self.foreign.iter().any(|pattern| pattern.fits(secret))
    }

    fn issued(&self) -> impl Iterator<Item = &KeyPrefix> {
        std::iter::once(&self.default_prefix).chain(&self.other_prefixes)
    }
}

impl ForeignPattern {
    fn fits(&self, secret: &str) -> bool {
        secret.len() == self.length && secret.starts_with(&self.prefix)
    }
}

/// Returns whether `rest`, the part of a key string after its prefix, is a body followed by its checksum.
fn has_valid_checksum(rest: &str) -> bool {
    if rest.len() != BODY_CHARS + CHECKSUM_CHARS || !rest.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return false;
    }
    let (body, claimed) = rest.split_at(BODY_CHARS);
    claimed.as_bytes() == checksum(body.as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::{KeyHash, SystemEntropy};

    fn prefix(text: &str) -> KeyPrefix {
        KeyPrefix::parse("prefix", text).unwrap()
    }

    fn format() -> KeyFormat {
        let foreign = vec![ForeignPattern { prefix: "pa_".into(), length: 20 }];
        KeyFormat::new(vec![prefix("prod_"), prefix("test_")], vec![prefix("old_")], foreign).unwrap()
    }

    fn is_well_formed(secret: &str) -> bool {
        format().parse(secret.to_owned()).is_some()
    }

    #[test]
    fn keys_with_an_issued_or_accepted_prefix_are_well_formed() {
        for known in ["prod_", "test_", "old_"] {
            let key = SecretKey::generate(&prefix(known), &SystemEntropy).unwrap();
            assert!(is_well_formed(key.expose()));
        }
        let stranger = SecretKey::generate(&prefix("kv_"), &SystemEntropy).unwrap();
        assert!(!is_well_formed(stranger.expose()));
    }

    #[test]
    fn foreign_keys_pass_by_prefix_and_length_alone() {
        assert!(is_well_formed("pa_-ABCDEFGHIJKLMNOP"));
        assert!(!is_well_formed("pa_ABCDEFGHIJKLMNOP"));
        assert!(!is_well_formed("pb_-ABCDEFGHIJKLMNOP"));
    }

    #[test]
    fn secrets_of_any_prefix_resemble_secrets() {
        for known in ["prod_", "old_", "kv_admin_", "another_", ""] {
            let secret = SecretKey::generate(&prefix(known), &SystemEntropy).unwrap();
            assert!(format().resembles_secret(secret.expose()));
            assert!(!format().resembles_secret(&secret.expose()[1..secret.expose().len() - 1]));
        }
        assert!(format().resembles_secret("pa_-ABCDEFGHIJKLMNOP"));
        let any = vec![ForeignPattern { prefix: String::new(), length: 36 }];
        let format = KeyFormat::new(vec![prefix("kv_")], vec![], any).unwrap();
        for id in ["", "ü", "0190a6f0-1a2b-7c3d-8e4f-0123456789ab", &"x".repeat(128), &"é".repeat(49)] {
            assert!(!format.resembles_secret(id), "{id}");
        }
    }

    #[test]
    fn random_strings_are_malformed() {
        for noise in ["", " ", "prod_", "\0", "prod_é", &"x".repeat(100_000)] {
            assert!(!is_well_formed(noise));
        }
    }

    #[test]
    fn only_issued_prefixes_can_be_requested() {
        assert_eq!(format().issued_prefix("test_").unwrap().as_str(), "test_");
        let error = format().issued_prefix("old_").unwrap_err();
        assert_eq!(error.to_string(), "prefix: is not configured; use one of \"prod_\", \"test_\"");
        assert!(KeyFormat::new(vec![], vec![], vec![]).is_err());
    }

    proptest! {
        #[test]
        fn the_checksum_detects_any_changed_character(at in 0_usize..49, with in "[0-9A-Za-z]") {
            let key = SecretKey::generate(&prefix("prod_"), &SystemEntropy).unwrap();
            let mut tampered = key.expose().to_owned();
            let at = at + "prod_".len();
            tampered.replace_range(at..=at, &with);
            prop_assert_eq!(is_well_formed(&tampered), tampered == key.expose());
        }

        #[test]
        fn arbitrary_text_never_panics(text in any::<String>()) {
            if let Some(key) = format().parse(text.clone()) {
                prop_assert_eq!(key.hash(), KeyHash::of(&text));
            }
        }
    }
}
