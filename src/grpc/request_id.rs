//! The name of one call, in logs and in the audit trail.

/// The id of a call: the caller's `x-request-id`, or one that the server made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(String);

impl RequestId {
    /// The metadata key in which the id travels, in both directions.
    pub const HEADER: &str = "x-request-id";
    /// The most characters of an id.
    pub const MAX_CHARS: usize = 128;

    /// Takes a caller's id: 1 to 128 characters of visible ASCII. Anything else could forge log lines and is refused.
    #[must_use]
    pub fn from_caller(id: &str) -> Option<Self> {
        let is_sound =
            !id.is_empty() && id.len() <= Self::MAX_CHARS && id.bytes().all(|byte| byte.is_ascii_graphic());
        is_sound.then(|| Self(id.to_owned()))
    }

    /// The id `number` of the process that drew `process`.
    #[must_use]
    pub fn from_counter(process: u64, number: u64) -> Self {
        Self(format!("{process:016x}-{number:x}"))
    }

    /// The id as text: visible ASCII.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_forge_a_log_line_are_refused() {
        assert_eq!(RequestId::from_caller("abc-1").unwrap().as_str(), "abc-1");
        for bad in ["", "a b", "a\nb", "ü", &"x".repeat(129)] {
            assert_eq!(RequestId::from_caller(bad), None, "{bad:?}");
        }
    }
}
