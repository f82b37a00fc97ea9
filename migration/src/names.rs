//! The names of the tables.

use std::fmt;

/// Maximum length of a prefix. With it, every name fits in PostgreSQL's 63 bytes.
const MAX_PREFIX: usize = 24;

/// The names of Keyvouch's tables. They have a common prefix, so that several installations of Keyvouch, or
/// Keyvouch and another program, can share a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    prefix: String,
    history: String,
}

/// The name is not a valid prefix, schema or table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidName;

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("must be a lower-case letter or underscore, then up to 23 of a-z, 0-9 and _")
    }
}

impl std::error::Error for InvalidName {}

impl Default for Names {
    fn default() -> Self {
        Self { prefix: String::new(), history: "seaql_migrations".to_owned() }
    }
}

impl Names {
    /// Returns the names of tables that begin with `prefix`. The history of their migrations is in
    /// `<prefix>seaql_migrations`. An empty prefix is allowed.
    ///
    /// # Errors
    /// The prefix is longer than 24 characters, has characters other than `a-z`, `0-9` and `_`, or begins
    /// with a digit.
    pub fn prefixed(prefix: &str) -> Result<Self, InvalidName> {
        if prefix.is_empty() {
            return Ok(Self::default());
        }
        check(prefix)?;
        Ok(Self { prefix: prefix.to_owned(), history: format!("{prefix}seaql_migrations") })
    }

    /// Sets `table` as the table of the migrations' history.
    ///
    /// # Errors
    /// `table` violates the rules of a prefix: see [`Names::prefixed`]. It must not be empty.
    pub fn with_history(self, table: &str) -> Result<Self, InvalidName> {
        check(table)?;
        Ok(Self { history: table.to_owned(), ..self })
    }

    /// Returns the name of the table of keys.
    #[must_use]
    pub fn api_key(&self) -> String {
        self.named("api_key")
    }

    /// Returns the name of the table of keys' last uses.
    #[must_use]
    pub fn api_key_usage(&self) -> String {
        self.named("api_key_usage")
    }

    /// Returns the name of the table of events.
    #[must_use]
    pub fn key_event(&self) -> String {
        self.named("key_event")
    }

    /// Returns the name of the table with the last revision.
    #[must_use]
    pub fn revision_head(&self) -> String {
        self.named("revision_head")
    }

    /// Returns the name of the table with the identity of this installation.
    #[must_use]
    pub fn store_identity(&self) -> String {
        self.named("store_identity")
    }

    /// Returns the name of the table with the hashes of keys that were revoked and deleted.
    #[must_use]
    pub fn revoked_hash(&self) -> String {
        self.named("revoked_hash")
    }

    /// Returns the name of the table with the keys that requests created.
    #[must_use]
    pub fn key_request(&self) -> String {
        self.named("key_request")
    }

    /// Returns the name of the table with the applied migrations.
    #[must_use]
    pub fn history(&self) -> &str {
        &self.history
    }

    /// Returns `name` with the prefix. Indexes have it, too.
    #[must_use]
    pub(crate) fn named(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

/// Checks a schema, a prefix or a table. Valid names need no escaping when they are quoted.
pub(crate) fn check(name: &str) -> Result<(), InvalidName> {
    let is_first = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    let is_next = |byte: u8| is_first(byte) || byte.is_ascii_digit();
    match name.as_bytes() {
        [first, rest @ ..]
            if rest.len() < MAX_PREFIX && is_first(*first) && rest.iter().all(|&byte| is_next(byte)) =>
        {
            Ok(())
        }
        _ => Err(InvalidName),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_begins_with_the_prefix() {
        let names = Names::prefixed("kv_").unwrap();
        assert_eq!(names.api_key(), "kv_api_key");
        assert_eq!(names.history(), "kv_seaql_migrations");
        assert_eq!(names.with_history("seaql_migrations").unwrap().history(), "seaql_migrations");
        assert_eq!(Names::prefixed("").unwrap(), Names::default());
    }

    #[test]
    fn invalid_names_are_rejected() {
        for odd in ["1a", "a-b", "a b", "A", "a\"", "é", &"a".repeat(25)] {
            assert_eq!(Names::prefixed(odd), Err(InvalidName), "{odd}");
        }
    }
}
