//! The error types of all input checks.

use std::fmt;

/// An input value is invalid. The text contains the field and the fix, but never the value, which may be a
/// secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidField {
    /// The field as the caller names it, for example `owner_id` or `scopes[2]`.
    pub field: String,
    /// The problem and its fix, as a sentence without a full stop.
    pub problem: String,
}

impl InvalidField {
    /// Returns an error of `field`.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}

/// One or more invalid fields of a request. The text is that of the first, with the number of the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidFields {
    first: InvalidField,
    others: Vec<InvalidField>,
}

impl InvalidFields {
    /// Returns the fields, in the order in which they were checked.
    pub fn iter(&self) -> impl Iterator<Item = &InvalidField> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

impl fmt::Display for InvalidFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.first.fmt(f)?;
        match self.others.len() {
            0 => Ok(()),
            1 => f.write_str(" (and 1 more invalid field)"),
            more => write!(f, " (and {more} more invalid fields)"),
        }
    }
}

impl std::error::Error for InvalidFields {}

impl From<InvalidField> for InvalidFields {
    fn from(first: InvalidField) -> Self {
        Self { first, others: Vec::new() }
    }
}

/// Collects the invalid fields of a request, so that its caller can fix all of them at once.
#[derive(Debug, Default)]
pub struct Violations(Option<InvalidFields>);

impl Violations {
    /// Returns the value of `checked`. If it is an error, returns `None` and collects the error.
    pub fn take<T, E: Into<InvalidFields>>(&mut self, checked: Result<T, E>) -> Option<T> {
        match checked {
            Ok(value) => Some(value),
            Err(error) => {
                let InvalidFields { first, others } = error.into();
                match &mut self.0 {
                    None => self.0 = Some(InvalidFields { first, others }),
                    Some(collected) => collected.others.extend(std::iter::once(first).chain(others)),
                }
                None
            }
        }
    }

    /// Returns `checked` values if nothing was collected.
    ///
    /// # Errors
    /// Returns the collected fields. `None` for `checked` has to imply that a field was collected.
    pub fn finish<T>(self, checked: Option<T>) -> Result<T, InvalidFields> {
        match (self.0, checked) {
            (Some(fields), _) => Err(fields),
            (None, Some(values)) => Ok(values),
            (None, None) => Err(InvalidField::new("request", "has an invalid field").into()),
        }
    }

    /// Returns whether no field was collected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invalid(field: &str) -> InvalidField {
        InvalidField::new(field, "is invalid")
    }

    #[test]
    fn all_fields_are_collected_in_order_and_the_text_names_the_first() {
        let mut violations = Violations::default();
        assert_eq!(violations.take(Ok::<_, InvalidField>(1)), Some(1));
        assert!(violations.is_empty());
        assert_eq!(violations.take(Err::<i32, _>(invalid("a"))), None);
        assert_eq!(violations.take(Err::<i32, _>(InvalidFields::from(invalid("b")))), None);
        let fields = violations.finish(Some(1)).unwrap_err();
        assert_eq!(fields.to_string(), "a: is invalid (and 1 more invalid field)");
        assert_eq!(fields.iter().map(|it| it.field.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        let mut more = Violations::default();
        more.take(Err::<i32, _>(fields));
        more.take(Err::<i32, _>(invalid("c")));
        let fields = more.finish(None::<()>).unwrap_err();
        assert_eq!(fields.to_string(), "a: is invalid (and 2 more invalid fields)");
        assert_eq!(Violations::default().finish(Some(1)), Ok(1));
    }
}
