//! Data of responses that was not sent yet. It counts against the limiter until the transport drops it.

use std::sync::Arc;

use hyper::body::Bytes;

use super::state::ConnectionState;

/// Data of a response. It counts as unread until this is dropped.
pub(super) struct UnreadData {
    connection: Arc<ConnectionState>,
    data: Bytes,
}

impl UnreadData {
    pub(super) fn new(connection: Arc<ConnectionState>, data: Bytes) -> Self {
        Self { connection, data }
    }
}

impl AsRef<[u8]> for UnreadData {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for UnreadData {
    fn drop(&mut self) {
        self.connection.forget_unread(self.data.len());
    }
}
