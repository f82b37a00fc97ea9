//! Repeats the authorization of a caller while its stream is open.

use std::time::Duration;

use futures_util::stream::{BoxStream, StreamExt as _};
use http::{Extensions, HeaderMap};
use tokio::time::Instant;
use tonic::{Request, Status};

use super::{Authenticator, rejected_actor};
use crate::grpc::{Peer, RequestId, methods, status};
use crate::service::{Actor, Caller, Permission};
use crate::telemetry;

/// Maximum number of responses between two authorizations.
const ANSWERS: u32 = 100;
/// Maximum time between two authorizations while responses are sent.
const PAUSE: Duration = Duration::from_secs(1);

/// Authorizes the caller of an open stream again: its credential may have been revoked or have expired since the call
/// began.
#[derive(Clone, Debug)]
pub(crate) struct Recheck {
    auth: Authenticator,
    headers: HeaderMap,
    extensions: Extensions,
    method: &'static str,
    needed: Permission,
}

impl Recheck {
    /// Creates one for the call `request` of the method at `path`, which needs the permission `needed`.
    ///
    /// # Errors
    /// Fails with an internal error if the guard did not handle the request, and so did not add its extensions.
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

    /// Returns the caller with its current permissions.
    ///
    /// # Errors
    /// The credential is no longer valid, or lacks the permission now. This is written to the audit log, because the
    /// call layer only logs calls that are rejected when they begin.
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

    /// Forwards the responses of a stream, and authorizes its caller again between them. Ends with the first error.
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
