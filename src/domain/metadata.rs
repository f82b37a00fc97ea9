//! Arbitrary data that owners attach to a key.

use std::collections::BTreeMap;

use super::InvalidField;
use super::text::{CONTROL_PROBLEM, exceeds, is_control};
use super::visible_text::check_visible;

/// Up to [`Metadata::MAX_PAIRS`] pairs of texts, sorted by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata(BTreeMap<String, String>);

impl Metadata {
    /// Maximum number of pairs.
    pub const MAX_PAIRS: usize = 32;
    /// Maximum length of a key in characters. The minimum is 1.
    pub const MAX_KEY_CHARS: usize = 64;
    /// Maximum length of a value in characters. Values may be empty.
    pub const MAX_VALUE_CHARS: usize = 512;

    /// Checks that `pairs` are valid, for metadata that is stored already.
    ///
    /// # Errors
    /// There are too many pairs, a key or a value has an invalid length, or one of them has a control
    /// character. The error names the field `metadata`.
    pub fn parse(pairs: BTreeMap<String, String>) -> Result<Self, InvalidField> {
        if pairs.len() > Self::MAX_PAIRS {
            return Err(refused(format!("has too many pairs; the maximum is {}", Self::MAX_PAIRS)));
        }
        for (key, value) in &pairs {
            if key.is_empty() || exceeds(key, Self::MAX_KEY_CHARS) {
                let problem = format!(
                    "has a key of the wrong length; a key has 1 to {} characters",
                    Self::MAX_KEY_CHARS
                );
                return Err(refused(problem));
            }
            if exceeds(value, Self::MAX_VALUE_CHARS) {
                let problem = format!(
                    "has a value that is too long; the maximum is {} characters",
                    Self::MAX_VALUE_CHARS
                );
                return Err(refused(problem));
            }
            if key.chars().chain(value.chars()).any(is_control) {
                return Err(refused(CONTROL_PROBLEM.into()));
            }
        }
        Ok(Self(pairs))
    }

    /// Checks that `pairs` are valid and unambiguous to people who read them. For metadata that a caller wants
    /// to store.
    ///
    /// # Errors
    /// Returns the errors of [`parse`](Self::parse), and an error if a key or a value begins or ends with white
    /// space, or has an invisible character.
    pub fn parse_new(pairs: BTreeMap<String, String>) -> Result<Self, InvalidField> {
        let metadata = Self::parse(pairs)?;
        for (key, value) in &metadata.0 {
            check_visible(key).map_err(|problem| refused(format!("has a key that {problem}")))?;
            check_visible(value).map_err(|problem| refused(format!("has a value that {problem}")))?;
        }
        Ok(metadata)
    }

    /// Returns the pairs.
    #[must_use]
    pub fn as_map(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

fn refused(problem: String) -> InvalidField {
    InvalidField::new("metadata", problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: impl IntoIterator<Item = (String, String)>) -> Result<Metadata, InvalidField> {
        Metadata::parse(pairs.into_iter().collect())
    }

    #[test]
    fn the_bounds_are_inclusive() {
        let full = (0..32).map(|i| (format!("{i:0>64}"), "ü".repeat(512)));
        assert!(parse(full).is_ok());
        assert!(parse((0..33).map(|i| (i.to_string(), String::new()))).is_err());
        assert!(parse([("k".repeat(65), String::new())]).is_err());
        assert!(parse([(String::new(), String::new())]).is_err());
        assert!(parse([("k".into(), "v".repeat(513))]).is_err());
        assert!(parse([("k".into(), "a\u{1}".into())]).is_err());
    }

    #[test]
    fn a_problem_states_each_limit_once() {
        let problem = parse([("k".into(), "v".repeat(513))]).unwrap_err().problem;
        assert_eq!(problem, "has a value that is too long; the maximum is 512 characters");
    }

    #[test]
    fn new_keys_and_values_are_checked_further() {
        let new = |key: &str, value: &str| Metadata::parse_new([(key.into(), value.into())].into());
        assert!(new("k", "").is_ok() && new("k", "a b").is_ok());
        for (key, value, named) in [(" k", "v", "key"), ("k", "v ", "value"), ("k", "\u{200b}", "value")] {
            assert!(parse([(key.into(), value.into())]).is_ok());
            let problem = new(key, value).unwrap_err().problem;
            assert!(problem.starts_with(&format!("has a {named} that ")), "{problem}");
        }
    }
}
