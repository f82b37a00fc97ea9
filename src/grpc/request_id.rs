//! Identifies a call in logs and in the audit trail.

use crate::domain::KeyFormat;

/// The id of a call: the caller's `x-request-id`, or one that the server generated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(String);

impl RequestId {
    /// The metadata key of the id, in requests and responses.
    pub const HEADER: &str = "x-request-id";
    /// Maximum number of characters of an id.
    pub const MAX_CHARS: usize = 128;

    /// Accepts a caller's id: 1 to 128 characters of visible ASCII. Returns `None` for others, which could forge log
    /// lines, and for secrets of the form `keys`, which a client sends by mistake. Ids are logged and stored.
    #[must_use]
    pub fn from_caller(id: &str, keys: &KeyFormat) -> Option<Self> {
        let is_valid =
            !id.is_empty() && id.len() <= Self::MAX_CHARS && id.bytes().all(|byte| byte.is_ascii_graphic());
        (is_valid && !keys.resembles_secret(id)).then(|| Self(id.to_owned()))
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
    use crate::domain::{ForeignPattern, KeyPrefix, SecretKey, SystemEntropy};

    fn keys() -> KeyFormat {
        let foreign = vec![ForeignPattern { prefix: "pa_".into(), length: 20 }];
        KeyFormat::new(vec![KeyPrefix::parse("p", "kv_").unwrap()], vec![], foreign).unwrap()
    }

    #[test]
    fn ids_that_could_forge_a_log_line_are_rejected() {
        assert_eq!(RequestId::from_caller("abc-1", &keys()).unwrap().as_str(), "abc-1");
        for bad in ["", "a b", "a\nb", "ü", &"x".repeat(129)] {
            assert_eq!(RequestId::from_caller(bad, &keys()), None, "{bad:?}");
        }
    }

    #[test]
    fn secrets_are_rejected() {
        for prefix in ["kv_", "kv_admin_"] {
            let prefix = KeyPrefix::parse("p", prefix).unwrap();
            let secret = SecretKey::generate(&prefix, &SystemEntropy).unwrap();
            assert_eq!(RequestId::from_caller(secret.expose(), &keys()), None);
        }
        assert_eq!(RequestId::from_caller("pa_-ABCDEFGHIJKLMNOP", &keys()), None);
    }
}
