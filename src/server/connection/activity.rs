//! The activity of a connection: its calls in flight, and whether they wait for this server or for their client.
//! The driver reads it to detect idle and stalled connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::watch;

use super::state::{ConnectionState, OpenStream};

/// The calls of a connection. The driver uses it to decide when the connection ends.
#[derive(Clone, Debug)]
pub(super) struct ConnectionActivity {
    active: watch::Sender<usize>,
    /// Number of request parts that arrived, and of response parts that the client took.
    moved: Arc<AtomicU64>,
    state: Arc<ConnectionState>,
}

impl ConnectionActivity {
    /// Creates the activity of the connection with this state.
    pub(super) fn new(state: Arc<ConnectionState>) -> Self {
        Self { active: watch::Sender::default(), moved: Arc::default(), state }
    }

    /// Returns the state that the connection shares with the limits.
    pub(super) fn state(&self) -> &Arc<ConnectionState> {
        &self.state
    }

    /// Completes once no call has been active for `timeout`.
    pub(super) async fn is_idle(&self, timeout: Duration) {
        let mut active = self.active.subscribe();
        loop {
            // The sender lives as long as `self`, so this can't fail.
            let _ = active.wait_for(|&active| active == 0).await;
            active.mark_unchanged();
            if tokio::time::timeout(timeout, active.changed()).await.is_err() {
                return;
            }
        }
    }

    /// Completes once, for about `timeout`, nothing was received, nothing was taken, and no call waited for
    /// this server. The client then does not read (RFC 9113, section 5.2), has stopped sending, or only stays
    /// connected.
    pub(super) async fn stalls(&self, timeout: Duration) {
        loop {
            let before = self.moved.load(Ordering::Relaxed);
            tokio::time::sleep(timeout).await;
            if !self.state.is_at_work() && self.moved.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }

    /// Begins a call, which holds `stream`. `stream` is `None` if the call is rejected.
    pub(super) fn begin(&self, stream: Option<OpenStream>, is_long_lived: bool) -> ActiveCall {
        self.active.send_modify(|active| *active += 1);
        if !is_long_lived {
            self.state.begin_work();
        }
        let waiting_on = Arc::new(AtomicU8::new(if is_long_lived { CallProgress::EVENTS } else { 0 }));
        let progress =
            CallProgress { waiting_on, moved: Arc::clone(&self.moved), state: Arc::clone(&self.state) };
        ActiveCall { activity: self.clone(), progress, _stream: stream }
    }
}

/// The progress of one call.
#[derive(Clone, Debug)]
pub(super) struct CallProgress {
    /// The events that the call waits for, as a set of the constants below. Empty while the call waits for
    /// this server.
    waiting_on: Arc<AtomicU8>,
    moved: Arc<AtomicU64>,
    state: Arc<ConnectionState>,
}

impl CallProgress {
    /// The call waits for the next part of the request.
    const REQUEST: u8 = 1;
    /// The call waits for the client to take the next part of the response.
    const CLIENT: u8 = 2;
    /// The call is long-lived. It waits for events most of the time.
    const EVENTS: u8 = 4;

    /// Sets whether the call waits for the next part of its request.
    pub(super) fn waits_for_request(&self, waits: bool) {
        self.set(Self::REQUEST, waits);
    }

    /// Sets whether the call waits for its client to read the response.
    pub(super) fn waits_for_client(&self, waits: bool) {
        self.set(Self::CLIENT, waits);
    }

    /// Records that a part of the request arrived.
    pub(super) fn has_received(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that the client took a part of the response.
    pub(super) fn has_sent(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
        self.state.note_taken();
    }

    fn set(&self, bit: u8, is_set: bool) {
        let before = if is_set {
            self.waiting_on.fetch_or(bit, Ordering::Relaxed)
        } else {
            self.waiting_on.fetch_and(!bit, Ordering::Relaxed)
        };
        let after = if is_set { before | bit } else { before & !bit };
        match (before == 0, after == 0) {
            (true, false) => self.state.end_work(),
            (false, true) => self.state.begin_work(),
            _ => {}
        }
    }
}

/// A call in flight. It ends when this is dropped, after its response was sent.
pub(super) struct ActiveCall {
    activity: ConnectionActivity,
    progress: CallProgress,
    _stream: Option<OpenStream>,
}

impl ActiveCall {
    pub(super) fn progress(&self) -> &CallProgress {
        &self.progress
    }

    /// Counts `data` of the response as unread for as long as it exists. Responses to administrators don't
    /// count.
    pub(super) fn count_unread(&self, data: Bytes) -> Bytes {
        self.activity.state.count_unread(data)
    }
}

impl Drop for ActiveCall {
    fn drop(&mut self) {
        // The request body can outlive the call, and must not report progress any more.
        self.progress.waits_for_client(true);
        self.activity.active.send_modify(|active| *active -= 1);
    }
}
