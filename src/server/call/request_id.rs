//! Assigns request ids.

use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderMap, HeaderValue};

use crate::domain::{Entropy, EntropyError, KeyFormat};
use crate::grpc::RequestId;

/// Generates ids for calls without an `x-request-id`.
#[derive(Debug)]
pub(super) struct RequestIds {
    process: u64,
    next: AtomicU64,
    /// The form of secrets, which callers send as ids by mistake.
    keys: KeyFormat,
}

impl RequestIds {
    /// Creates a generator whose ids begin with a number of this process, drawn from `entropy`. Secrets of the
    /// form `keys` are replaced by generated ids.
    pub(super) fn new(entropy: &dyn Entropy, keys: KeyFormat) -> Result<Self, EntropyError> {
        let mut process = [0; 8];
        entropy.fill(&mut process)?;
        Ok(Self { process: u64::from_ne_bytes(process), next: AtomicU64::new(0), keys })
    }

    /// Returns the caller's `x-request-id` if it is valid, and a new id otherwise.
    pub(super) fn of(&self, headers: &HeaderMap) -> RequestId {
        let id = headers.get(RequestId::HEADER).and_then(|id| id.to_str().ok());
        id.and_then(|id| RequestId::from_caller(id, &self.keys)).unwrap_or_else(|| {
            RequestId::from_counter(self.process, self.next.fetch_add(1, Ordering::Relaxed))
        })
    }
}

/// Returns the id as a header of the response.
pub(super) fn header(id: &RequestId) -> Option<HeaderValue> {
    // An id is visible ASCII, so it is a valid header value.
    HeaderValue::from_str(id.as_str()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{KeyPrefix, SystemEntropy};

    #[test]
    fn a_valid_id_of_the_caller_is_used() {
        let keys = KeyFormat::new(vec![KeyPrefix::parse("p", "kv_").unwrap()], vec![], vec![]).unwrap();
        let ids = RequestIds::new(&SystemEntropy, keys).unwrap();
        let of = |id: &'static str| {
            let headers = HeaderMap::from_iter([("x-request-id".parse().unwrap(), id.parse().unwrap())]);
            ids.of(&headers)
        };
        assert_eq!(header(&of("from-a-caller")).unwrap(), "from-a-caller");
        let (first, second) = (of("not valid"), ids.of(&HeaderMap::new()));
        assert_ne!(first.as_str(), "not valid");
        assert_ne!(first, second);
    }
}
