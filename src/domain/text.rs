//! Short texts with a length limit and without control characters.

use std::fmt;

use super::InvalidField;
use super::visible_text::check_visible;

/// The label of a key.
pub type KeyName = BoundedText<1, 128>;
/// The purpose of a key.
pub type Description = BoundedText<0, 1024>;
/// The owner of a key: the party that it acts for. Owners are compared byte by byte.
pub type OwnerId = BoundedText<1, 128>;
/// The reason of a revocation.
pub type RevokeReason = BoundedText<0, 256>;

/// A text of `MIN` to `MAX` characters (Unicode scalar values), without control characters.
///
/// If `MIN` is greater than 0, a text that consists of white space alone is rejected.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BoundedText<const MIN: usize, const MAX: usize>(String);

impl<const MIN: usize, const MAX: usize> BoundedText<MIN, MAX> {
    /// Checks that `text` is valid, for a text that is stored already or that only selects stored texts.
    /// Texts of earlier releases break the rules of [`parse_new`](Self::parse_new).
    ///
    /// # Errors
    /// It is empty or blank although `MIN` is greater than 0, is too long, or has a control character. The
    /// error names `field`.
    pub fn parse(field: &str, text: impl Into<String>) -> Result<Self, InvalidField> {
        let text = text.into();
        if MIN > 0 && text.trim().is_empty() {
            return Err(InvalidField::new(
                field,
                format!("must not be empty; it has {MIN} to {MAX} characters"),
            ));
        }
        if exceeds(&text, MAX) {
            return Err(InvalidField::new(field, format!("is too long; the maximum is {MAX} characters")));
        }
        if text.chars().any(is_control) {
            return Err(InvalidField::new(field, CONTROL_PROBLEM));
        }
        Ok(Self(text))
    }

    /// Checks that `text` is valid, and that it is unambiguous to people who read it. For every text that a
    /// caller wants to store.
    ///
    /// # Errors
    /// Returns the errors of [`parse`](Self::parse), and an error if the text begins or ends with white space,
    /// or has an invisible character. The error names `field`.
    pub fn parse_new(field: &str, text: impl Into<String>) -> Result<Self, InvalidField> {
        let text = Self::parse(field, text)?;
        check_visible(text.as_str()).map_err(|problem| InvalidField::new(field, problem))?;
        Ok(text)
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> Default for BoundedText<0, MAX> {
    fn default() -> Self {
        Self(String::new())
    }
}

impl<const MIN: usize, const MAX: usize> fmt::Debug for BoundedText<MIN, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<const MIN: usize, const MAX: usize> fmt::Display for BoundedText<MIN, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The problem of a text with a control character.
pub(super) const CONTROL_PROBLEM: &str =
    "has a control character: leave out line breaks, tabs, NUL and marks that turn the direction of text";

/// Returns whether `c` is a control character: one of Unicode's category Cc, a line or paragraph separator,
/// or a mark that changes the direction of text (UAX #9). With such a mark, one name can look like another.
pub(super) fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns whether `text` has more than `max` characters. Counts at most one character more.
pub(super) fn exceeds(text: &str, max: usize) -> bool {
    text.len() > max && text.chars().nth(max).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Three = BoundedText<1, 3>;

    #[test]
    fn length_counts_characters_not_bytes() {
        assert!(Three::parse("f", "äöü").is_ok());
        assert!(Three::parse("f", "äöüx").is_err());
    }

    #[test]
    fn invalid_texts_are_rejected_with_the_field() {
        for bad in ["", "  ", "\u{a0}", "a\n", "\0", "\u{7f}", "\u{202e}", "\u{2028}"] {
            assert_eq!(Three::parse("name", bad).unwrap_err().field, "name", "{bad:?}");
        }
        assert!(BoundedText::<0, 3>::parse("f", "").is_ok());
    }

    #[test]
    fn stored_texts_stay_readable_and_new_ones_are_checked_further() {
        for text in [" a", "a ", "a\u{200b}"] {
            assert_eq!(Three::parse("name", text).unwrap().as_str(), text);
            assert_eq!(Three::parse_new("name", text).unwrap_err().field, "name");
        }
        assert_eq!(Three::parse_new("name", "").unwrap_err(), Three::parse("name", "").unwrap_err());
        assert!(BoundedText::<0, 3>::parse_new("f", "").is_ok());
    }
}
