//! Assigns request ids.

use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderMap, HeaderValue};

use crate::domain::{Entropy, EntropyError};
use crate::grpc::RequestId;

/// Generates ids for calls without an `x-request-id`.
#[derive(Debug)]
pub(super) struct RequestIds {
    process: u64,
    next: AtomicU64,
}

impl RequestIds {
    /// Creates a generator whose ids begin with a number of this process, drawn from `entropy`.
    pub(super) fn new(entropy: &dyn Entropy) -> Result<Self, EntropyError> {
        let mut process = [0; 8];
        entropy.fill(&mut process)?;
        Ok(Self { process: u64::from_ne_bytes(process), next: AtomicU64::new(0) })
    }

    /// Returns the caller's `x-request-id` if it is valid, and a new id otherwise.
    pub(super) fn of(&self, headers: &HeaderMap) -> RequestId {
        let id = headers.get(RequestId::HEADER).and_then(|id| id.to_str().ok());
        id.and_then(RequestId::from_caller).unwrap_or_else(|| {
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
    use crate::domain::SystemEntropy;

    #[test]
    fn a_valid_id_of_the_caller_is_used() {
        let ids = RequestIds::new(&SystemEntropy).unwrap();
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
