//! Asking again who calls, while a stream is open.

use std::time::Duration;

use futures_util::stream::{BoxStream, StreamExt as _};
use http::{Extensions, HeaderMap};
use tokio::time::Instant;
use tonic::{Request, Status};

use super::{Authenticator, rejected_actor};
use crate::grpc::{Peer, RequestId, methods, status};
use crate::service::{Actor, Caller, Permission};
use crate::telemetry;

/// After so many answers of a stream, and after so much time between two, the caller is asked for again.
const ANSWERS: u32 = 100;
const PAUSE: Duration = Duration::from_secs(1);

/// Authorizes the caller of an open stream again: its credential may have been revoked or have expired since the call began.
#[derive(Clone, Debug)]
pub(crate) struct Recheck {
    auth: Authenticator,
    headers: HeaderMap,
    extensions: Extensions,
    method: &'static str,
    needed: Permission,
}

impl Recheck {
    /// Creates one for the call `request` of the method at `path`, which needs the permission `needed`. The guard left what it takes in
    /// the request.
    pub(crate) fn of<T>(
        request: &Request<T>,
        path: &'static str,
        needed: Permission,
    ) -> Result<Self, Status> {
        let Some(auth) = request.extensions().get::<Authenticator>() else {
            return Err(status::internal("a stream reached its handler without being authenticated"));
        };
        Ok(Self {
            auth: auth.clone(),
            headers: request.metadata().as_ref().clone(),
            extensions: request.extensions().clone(),
            method: methods::name(path),
            needed,
        })
    }

    /// Returns the caller as it is now.
    ///
    /// # Errors
    /// The credential is not valid any more, or may not make this call any more: the audit log says so, for the call itself was
    /// let through.
    pub(crate) async fn caller(&self) -> Result<Caller, Status> {
        let request_id = self.extensions.get().map_or("", RequestId::as_str);
        let caller = self.auth.authorize(&self.headers, &self.extensions, request_id, self.needed).await;
        caller.inspect_err(|rejection| self.report(rejection))
    }

    fn report(&self, status: &Status) {
        telemetry::refused(&telemetry::Refusal {
            method: self.method,
            peer: self.extensions.get().and_then(Peer::address),
            actor: rejected_actor(status).map(|Actor(name)| name.as_str()),
            code: status.code(),
            reason: status.message(),
        });
    }

    /// Passes on the answers of a stream, and asks again for its caller between them. Ends with the first error.
    pub(crate) fn every_so_often<T: Send + 'static>(
        self,
        answers: BoxStream<'static, Result<T, Status>>,
    ) -> BoxStream<'static, Result<T, Status>> {
        let begin = (answers, self, ANSWERS, Instant::now());
        let checked = futures_util::stream::unfold(Some(begin), |state| async {
            let (mut answers, recheck, mut left, mut checked_at) = state?;
            let answer = answers.next().await?;
            if left == 0 || checked_at.elapsed() > PAUSE {
                if let Err(refusal) = recheck.caller().await {
                    return Some((Err(refusal), None));
                }
                (left, checked_at) = (ANSWERS, Instant::now());
            }
            let is_last = answer.is_err();
            let next = (answers, recheck, left - 1, checked_at);
            Some((answer, (!is_last).then_some(next)))
        });
        checked.boxed()
    }
}
