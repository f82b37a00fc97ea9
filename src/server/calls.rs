//! The calls of one connection: they know its peer, are counted, and end with it.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use tokio::sync::watch;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;

use super::answer::{Answer, End};
use super::arrival::PartialQuota;
use super::call_layer::CallService;
use super::places::{Seat, StreamKind};
use super::quota::Taken;
use super::{Peer, http_gate};
use crate::grpc::{overloaded, too_many_header_fields};

/// Calls that have no end of their own: they are told to go on elsewhere when their connection is to end.
const ENDLESS: [&str; 4] = [
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/keyvouch.v1.Validator/WatchChanges",
];

/// Maximum number of header fields of a call, without the pseudo-header fields of HTTP/2.
const MAX_HEADER_FIELDS: usize = 64;

/// What the calls of a connection do, for those who decide on its end.
#[derive(Clone, Debug)]
pub(super) struct Activity {
    running: watch::Sender<usize>,
    progress: Arc<Progress>,
    seat: Seat,
}

#[derive(Debug, Default)]
struct Progress {
    /// Calls that wait for this server, and not for their client.
    at_work: AtomicUsize,
    /// Pieces of requests that came, and of answers that were taken.
    moved: AtomicU64,
}

impl Activity {
    /// Tracks the connection with the slot `seat`.
    pub(super) fn new(seat: Seat) -> Self {
        Self { running: watch::Sender::default(), progress: Arc::default(), seat }
    }

    /// Completes when no call has run for `timeout`.
    pub(super) async fn rests(&self, timeout: Duration) {
        let mut running = self.running.subscribe();
        loop {
            // The sender lives as long as `self`.
            let _ = running.wait_for(|&running| running == 0).await;
            running.mark_unchanged();
            if tokio::time::timeout(timeout, running.changed()).await.is_err() {
                return;
            }
        }
    }

    /// Completes when for about `timeout` nothing came and nothing was taken, and no call waited for this server: the client
    /// gives no room for what it asked for (RFC 9113, section 5.2), does not go on with what it sends, or just stays.
    pub(super) async fn stalls(&self, timeout: Duration) {
        loop {
            let before = self.progress.moved.load(Ordering::Relaxed);
            tokio::time::sleep(timeout).await;
            let is_at_work = self.progress.at_work.load(Ordering::Relaxed) > 0;
            if !is_at_work && self.progress.moved.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }

    fn begin(&self, stream: Option<Taken>) -> Running {
        self.running.send_modify(|running| *running += 1);
        self.seat.set_busy(true);
        self.progress.at_work.fetch_add(1, Ordering::Relaxed);
        Running { activity: self.clone(), waits: Waits(Arc::default()), _stream: stream }
    }
}

/// For what a call waits: bits. Without one, for this server.
#[derive(Clone, Debug)]
struct Waits(Arc<AtomicU8>);

impl Waits {
    /// For the next piece of its request.
    const REQUEST: u8 = 1;
    /// For room for the next piece of its answer.
    const ROOM: u8 = 2;

    fn set(&self, bit: u8, is_set: bool, progress: &Progress) {
        let before = if is_set {
            self.0.fetch_or(bit, Ordering::Relaxed)
        } else {
            self.0.fetch_and(!bit, Ordering::Relaxed)
        };
        let after = if is_set { before | bit } else { before & !bit };
        match (before == 0, after == 0) {
            (true, false) => progress.at_work.fetch_sub(1, Ordering::Relaxed),
            (false, true) => progress.at_work.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
    }
}

/// A call that runs.
pub(super) struct Running {
    activity: Activity,
    waits: Waits,
    /// `None` if the call is rejected.
    _stream: Option<Taken>,
}

impl Running {
    fn set(&self, bit: u8, is_set: bool) {
        self.waits.set(bit, is_set, &self.activity.progress);
    }

    /// Sets whether the call waits for its client to read the answer.
    pub(super) fn waits_for_room(&self, waits: bool) {
        self.set(Waits::ROOM, waits);
    }

    /// Notes that the client read a part of the answer.
    pub(super) fn has_moved(&self) {
        self.activity.progress.moved.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts `data` of the answer as unread for as long as it exists. Those of administrators don't count.
    pub(super) fn count_unread(&self, data: Bytes) -> Bytes {
        match self.activity.seat.unread() {
            Some(unread) => unread.count(data),
            None => data,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that is over works no more; what is left of its request may be dropped later, and changes nothing.
        self.waits_for_room(true);
        let mut is_last = false;
        self.activity.running.send_modify(|running| {
            *running -= 1;
            is_last = *running == 0;
        });
        if is_last {
            self.activity.seat.set_busy(false);
        }
    }
}

/// Answers the calls of a connection.
#[derive(Clone)]
pub(super) struct Calls {
    service: CallService<Routes>,
    peer: Peer,
    activity: Activity,
    is_ending: watch::Receiver<bool>,
    drain_timeout: Duration,
}

impl Calls {
    /// By `service`, for `peer`. When the connection `is_ending`, endless calls end at once, and all others when
    /// `drain_timeout` has passed.
    pub(super) fn new(
        service: CallService<Routes>,
        peer: Peer,
        activity: Activity,
        is_ending: watch::Receiver<bool>,
        drain_timeout: Duration,
    ) -> Self {
        Self { service, peer, activity, is_ending, drain_timeout }
    }

    /// Completes when the answer to `request` is to end, though there could be more.
    fn end_of(&self, request: &Request<Incoming>) -> End {
        let mut is_ending = self.is_ending.clone();
        let grace = (!ENDLESS.contains(&request.uri().path())).then_some(self.drain_timeout);
        Box::pin(async move {
            // A connection that is gone ends as well.
            let _ = is_ending.wait_for(|is_ending| *is_ending).await;
            if let Some(grace) = grace {
                tokio::time::sleep(grace).await;
            }
        })
    }
}

impl hyper::service::Service<Request<Incoming>> for Calls {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let is_reflection = request.uri().path().starts_with("/grpc.reflection.");
        let kind = if is_reflection { StreamKind::Reflection } else { StreamKind::Other };
        let stream = self.activity.seat.open_stream(kind);
        let rejection = http_gate::rejection(&request)
            .or_else(|| stream.is_none().then(|| overloaded().into_http()))
            // A header field takes many times its encoded size in memory, until the call ends.
            .or_else(|| {
                (request.headers().len() > MAX_HEADER_FIELDS).then(|| too_many_header_fields().into_http())
            });
        let running = self.activity.begin(stream);
        if let Some(rejection) = rejection {
            let answer = rejection.map(|body| Answer::new(body, None, running));
            return Box::pin(std::future::ready(Ok(answer)));
        }
        let end = Some(self.end_of(&request));
        let (waits, progress) = (running.waits.clone(), Arc::clone(&self.activity.progress));
        let mut request = request.map(|body| Body::new(Asked { body, waits, progress }));
        request.extensions_mut().insert(self.peer.clone());
        request.extensions_mut().insert(PartialQuota(self.activity.seat.partial()));
        let answer = self.service.clone().call(request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(answer.map(|body| Answer::new(body, end, running)))
        })
    }
}

/// The body of a request, which tells when its call waits for it.
struct Asked {
    body: Incoming,
    waits: Waits,
    progress: Arc<Progress>,
}

impl hyper::body::Body for Asked {
    type Data = <Incoming as hyper::body::Body>::Data;
    type Error = <Incoming as hyper::body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let next = Pin::new(&mut self.body).poll_frame(cx);
        self.waits.set(Waits::REQUEST, next.is_pending(), &self.progress);
        if next.is_ready() {
            self.progress.moved.fetch_add(1, Ordering::Relaxed);
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
