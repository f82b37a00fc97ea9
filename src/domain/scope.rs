//! The scopes of keys.

use std::collections::BTreeSet;
use std::fmt;

use super::InvalidField;

/// The prefix of reserved scopes. They give access to Keyvouch itself, so only a caller that has such a scope
/// can grant it.
pub const RESERVED_SCOPE_PREFIX: &str = "keyvouch.";

/// A scope-token of RFC 6749, section 3.3: printable ASCII without space, `"` and `\`. Scopes are compared
/// exactly.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope(String);

impl Scope {
    /// Maximum length of a scope in characters. The minimum is 1.
    pub const MAX_CHARS: usize = 128;

    /// Checks that `token` is a valid scope.
    ///
    /// # Errors
    /// It is empty or too long, or has an invalid character. The error names `field`.
    pub fn parse(field: &str, token: impl Into<String>) -> Result<Self, InvalidField> {
        Self::check(token).map_err(|problem| InvalidField::new(field, problem))
    }

    /// Checks `token` and returns only the problem, so that callers build the name of a field only on
    /// failure.
    fn check(token: impl Into<String>) -> Result<Self, String> {
        let token = token.into();
        if token.is_empty() || token.len() > Self::MAX_CHARS {
            return Err(format!("has the wrong length; a scope has 1 to {} characters", Self::MAX_CHARS));
        }
        if !token.bytes().all(is_scope_byte) {
            let problem =
                "is not a valid scope; use printable ASCII except space, \" and \\ (RFC 6749, section 3.3)";
            return Err(problem.to_owned());
        }
        Ok(Self(token))
    }

    /// Returns the scope as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether this scope gives access to Keyvouch itself.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with(RESERVED_SCOPE_PREFIX)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_scope_byte(byte: u8) -> bool {
    matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e)
}

/// A set of at most [`ScopeSet::MAX_SCOPES`] scopes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScopeSet(BTreeSet<Scope>);

impl ScopeSet {
    /// Maximum number of scopes.
    pub const MAX_SCOPES: usize = 64;

    /// Checks that `tokens` are at most [`MAX_SCOPES`](Self::MAX_SCOPES) valid scopes. Repeated scopes count
    /// each time.
    ///
    /// # Errors
    /// There are too many scopes, or a scope is invalid. The error names `field`, or the index of the invalid
    /// scope in it, for example `scopes[2]`.
    pub fn parse<T: Into<String>>(
        field: &str,
        tokens: impl IntoIterator<Item = T>,
    ) -> Result<Self, InvalidField> {
        let mut scopes = BTreeSet::new();
        for (index, token) in tokens.into_iter().enumerate() {
            if index == Self::MAX_SCOPES {
                let problem = format!("has too many scopes; the maximum is {}", Self::MAX_SCOPES);
                return Err(InvalidField::new(field, problem));
            }
            let scope = Scope::check(token)
                .map_err(|problem| InvalidField::new(format!("{field}[{index}]"), problem))?;
            scopes.insert(scope);
        }
        Ok(Self(scopes))
    }

    /// Returns the scopes, sorted by their bytes.
    pub fn iter(&self) -> impl Iterator<Item = &Scope> {
        self.0.iter()
    }

    /// Returns the number of scopes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether the set contains exactly `scope`.
    #[must_use]
    pub fn contains(&self, scope: &Scope) -> bool {
        self.0.contains(scope)
    }

    /// Returns whether this set satisfies the scopes in `required`. An empty `required` is always satisfied.
    #[must_use]
    pub fn satisfy(&self, required: &Self, scope_match: ScopeMatch) -> bool {
        match scope_match {
            ScopeMatch::All => required.0.is_subset(&self.0),
            ScopeMatch::Any => required.is_empty() || !required.0.is_disjoint(&self.0),
        }
    }
}

/// The rule by which required scopes are compared with the scopes of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScopeMatch {
    /// Every required scope has to be present.
    #[default]
    All,
    /// One of the required scopes has to be present.
    Any,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(tokens: &[&str]) -> ScopeSet {
        ScopeSet::parse("scopes", tokens.iter().copied()).unwrap()
    }

    #[test]
    fn a_part_of_a_scope_or_another_case_is_another_scope() {
        let held = set(&["api_keys:admin"]);
        for required in ["admin", "api_keys", "API_KEYS:ADMIN", "api_keys:admin2"] {
            assert!(!held.satisfy(&set(&[required]), ScopeMatch::All), "{required}");
            assert!(!held.satisfy(&set(&[required]), ScopeMatch::Any), "{required}");
        }
    }

    #[test]
    fn an_empty_requirement_passes_under_both() {
        for scope_match in [ScopeMatch::All, ScopeMatch::Any] {
            assert!(set(&[]).satisfy(&set(&[]), scope_match));
            assert!(set(&["a"]).satisfy(&set(&[]), scope_match));
        }
    }

    #[test]
    fn errors_name_the_index_of_the_invalid_scope() {
        let error = ScopeSet::parse("scopes", ["read", "wri te"]).unwrap_err();
        assert_eq!(error.field, "scopes[1]");
        for bad in ["", " ", "a\"b", "a\\b", "ü", "a\n", "\u{7f}"] {
            assert!(Scope::parse("s", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sixty_four_scopes_fit_and_repeated_ones_are_kept_once() {
        assert_eq!(ScopeSet::parse("scopes", (0..64).map(|i| i.to_string())).unwrap().len(), 64);
        assert_eq!(ScopeSet::parse("scopes", vec!["a"; 64]).unwrap().len(), 1);
        for more in [vec!["a".to_owned(); 65], (0..65).map(|i| i.to_string()).collect()] {
            assert_eq!(ScopeSet::parse("scopes", more).unwrap_err().field, "scopes");
        }
    }

    proptest! {
        #[test]
        fn requirements_match_all_or_any_scope(held in subset(), required in subset()) {
            let (held_set, required_set) = (parse(&held), parse(&required));
            let all = required.iter().all(|scope| held.contains(scope));
            let any = required.is_empty() || required.iter().any(|scope| held.contains(scope));
            prop_assert_eq!(held_set.satisfy(&required_set, ScopeMatch::All), all);
            prop_assert_eq!(held_set.satisfy(&required_set, ScopeMatch::Any), any);
        }

        #[test]
        fn every_scope_token_of_the_rfc_is_accepted(token in "[!#-\\[\\]-~]{1,128}") {
            let scope = Scope::parse("s", token.clone()).unwrap();
            prop_assert_eq!(scope.as_str(), token);
        }
    }

    fn subset() -> impl Strategy<Value = Vec<String>> {
        proptest::sample::subsequence(vec!["a", "b", "c", "d", "e"], 0..=5)
            .prop_map(|scopes| scopes.into_iter().map(String::from).collect())
    }

    fn parse(tokens: &[String]) -> ScopeSet {
        ScopeSet::parse("scopes", tokens.iter().cloned()).unwrap()
    }
}
