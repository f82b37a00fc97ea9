//! Repeats the authorization of a caller while its stream is open.

use std::time::Duration;

use futures_util::stream::{BoxStream, StreamExt as _};
use http::{Extensions, HeaderMap};
use tonic::{Request, Status};

use super::{Authenticator, rejected_actor, rejected_certificate};
use crate::grpc::{Peer, RequestId, methods, status};
use crate::service::{Actor, Caller, Permission};
use crate::telemetry;

/// Maximum number of responses between two authorizations.
const MAX_RESPONSES: u32 = 100;
/// Maximum time between two authorizations while responses are sent.
const MAX_INTERVAL: Duration = Duration::from_secs(1);

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
    /// Creates the recheck of the call `request` of the method at `path`, which needs the permission `needed`.
    ///
    /// # Errors
    /// Returns `INTERNAL` if the guard did not handle the request, and so did not add its extensions.
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
    /// Fails if the credential is no longer valid, or no longer has the permission. The rejection is logged here, because
    /// the call layer only logs calls that are rejected when they begin.
    pub(crate) async fn caller(&self) -> Result<Caller, Status> {
        let request_id = self.extensions.get().map_or("", RequestId::as_str);
        let caller = self.auth.authorize(&self.headers, &self.extensions, request_id, self.needed).await;
        caller.inspect_err(|rejection| self.report(rejection))
    }

    fn report(&self, status: &Status) {
        telemetry::log_rejection(&telemetry::Rejection {
            method: self.method,
            peer: self.extensions.get().and_then(Peer::address),
            actor: rejected_actor(status).map(|Actor(name)| name.as_str()),
            certificate: rejected_certificate(status),
            code: status.code(),
            reason: status.message(),
        });
    }

    /// Forwards the responses of a stream, and authorizes its caller again between them. Ends with the first error.
    pub(crate) fn between_responses<T: Send + 'static>(
        self,
        responses: BoxStream<'static, Result<T, Status>>,
    ) -> BoxStream<'static, Result<T, Status>> {
        let checked_at = self.auth.keys.moment();
        let begin = (responses, self, MAX_RESPONSES, checked_at);
        let checked = futures_util::stream::unfold(Some(begin), |state| async {
            let (mut responses, recheck, mut left, mut checked_at) = state?;
            let response = responses.next().await?;
            let now = recheck.auth.keys.moment();
            if left == 0 || now.since(checked_at) > MAX_INTERVAL {
                if let Err(rejection) = recheck.caller().await {
                    return Some((Err(rejection), None));
                }
                (left, checked_at) = (MAX_RESPONSES, now);
            }
            let is_last = response.is_err();
            let next = (responses, recheck, left - 1, checked_at);
            Some((response, (!is_last).then_some(next)))
        });
        checked.boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::stream;
    use tokio::sync::watch;

    use super::*;
    use crate::domain::{ManualClock, ManualStopwatch, Timestamp};
    use crate::grpc::auth::tests::authenticator;
    use crate::grpc::{AcceptedCredentials, AdminToken, CertificateNames};

    const TOKEN: &str = "a-token-of-enough-characters";

    /// The recheck of a stream whose caller has a token, and the means to remove the token and to move time.
    struct Stream {
        responses: BoxStream<'static, Result<u32, Status>>,
        tokens: watch::Sender<Arc<[AdminToken]>>,
        stopwatch: Arc<ManualStopwatch>,
    }

    fn stream() -> Stream {
        let (tokens, accepted) = watch::channel(Arc::from([AdminToken::new("ops", TOKEN).unwrap()]));
        let stopwatch = Arc::new(ManualStopwatch::default());
        let certificates = CertificateNames::default();
        let accepted = AcceptedCredentials::Listed { tokens: accepted, certificates };
        let clock = Arc::new(ManualClock::new(Timestamp::MIN));
        let mut request = Request::new(());
        request.metadata_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
        request.extensions_mut().insert(authenticator(accepted, &clock, &stopwatch));
        let recheck = Recheck::of(&request, methods::STREAM_KEYS, Permission::Read).unwrap();
        let responses = recheck.between_responses(stream::iter((0..).map(Ok)).boxed());
        Stream { responses, tokens, stopwatch }
    }

    #[tokio::test]
    async fn the_caller_is_authorized_again_after_the_interval() {
        let Stream { mut responses, tokens, stopwatch } = stream();
        responses.next().await.unwrap().unwrap();
        tokens.send_replace(Arc::default());
        stopwatch.advance(MAX_INTERVAL);
        responses.next().await.unwrap().unwrap();
        stopwatch.advance(Duration::from_nanos(1));
        assert_eq!(responses.next().await.unwrap().unwrap_err().code(), tonic::Code::Unauthenticated);
        assert!(responses.next().await.is_none());
    }

    #[tokio::test]
    async fn the_caller_is_authorized_again_after_many_responses() {
        let Stream { mut responses, tokens, .. } = stream();
        tokens.send_replace(Arc::default());
        for _ in 0..MAX_RESPONSES {
            responses.next().await.unwrap().unwrap();
        }
        assert_eq!(responses.next().await.unwrap().unwrap_err().code(), tonic::Code::Unauthenticated);
    }
}
