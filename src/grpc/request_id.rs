//! Identifies a call in logs and in the audit trail.

/// The id of a call: the caller's `x-request-id`, or one that the server generated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(String);

impl RequestId {
    /// The metadata key of the id, in requests and responses.
    pub const HEADER: &str = "x-request-id";
    /// Maximum number of characters of an id.
    pub const MAX_CHARS: usize = 128;

    /// Accepts a caller's id: 1 to 128 characters of visible ASCII. Returns `None` for others, which could forge log
    /// lines.
    #[must_use]
    pub fn from_caller(id: &str) -> Option<Self> {
        let is_valid =
            !id.is_empty() && id.len() <= Self::MAX_CHARS && id.bytes().all(|byte| byte.is_ascii_graphic());
        is_valid.then(|| Self(id.to_owned()))
    }

    /// Creates the id of call `number` in a process that is identified by the random number `process`.
    #[must_use]
    pub fn from_counter(process: u64, number: u64) -> Self {
        Self(format!("{process:016x}-{number:x}"))
    }

    /// Returns the id as text, which is visible ASCII.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_forge_a_log_line_are_rejected() {
        assert_eq!(RequestId::from_caller("abc-1").unwrap().as_str(), "abc-1");
        for bad in ["", "a b", "a\nb", "ü", &"x".repeat(129)] {
            assert_eq!(RequestId::from_caller(bad), None, "{bad:?}");
        }
    }
}
