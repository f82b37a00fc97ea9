//! The service `Validator`.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use futures_util::stream::{BoxStream, StreamExt as _};
use tonic::{Request, Response, Status};

use super::auth::{Recheck, lacks_permission};
use super::methods::WATCH_CHANGES;
use super::pb::validator_server::Validator;
use super::pb::{ErrorReason, ValidateRequest, ValidateResponse, WatchChangesRequest, WatchChangesResponse};
use super::{Authenticator, CacheOnly, convert, status};
use crate::domain::{InvalidField, ScopeSet};
use crate::repository::FeedPosition;
use crate::service::{ChangeWatcher, Lookups, News, Permission, ServiceError, ValidatorService};

const FRESHNESS_NEEDS_CREDENTIAL: &str = "max_staleness: values below the server's cache.min_staleness need a credential: the metadata `authorization: Bearer <admin token or key>`, or a client certificate that the server accepts";

/// Implements the service `Validator`.
#[derive(Clone, Debug)]
pub struct ValidatorHandler {
    service: ValidatorService,
    watcher: ChangeWatcher,
    auth: Authenticator,
    min_staleness: Duration,
}

/// Version of the encoding of positions: their first byte.
const POSITION_VERSION: u8 = 1;

impl ValidatorHandler {
    /// Creates a handler that calls `service` and `watcher`. Only callers that `auth` authenticates may request less
    /// than `min_staleness`.
    #[must_use]
    pub fn new(
        service: ValidatorService,
        watcher: ChangeWatcher,
        auth: Authenticator,
        min_staleness: Duration,
    ) -> Self {
        Self { service, watcher, auth, min_staleness }
    }

    /// Returns the maximum staleness that a call accepts. `None` if it accepts what the server allows.
    async fn max_staleness(&self, request: &Request<ValidateRequest>) -> Result<Option<Duration>, Status> {
        let Some(requested) = request.get_ref().max_staleness else {
            return Ok(None);
        };
        let requested =
            convert::from_proto_duration("max_staleness", requested).map_err(status::invalid_field)?;
        if requested < self.min_staleness {
            let caller = self.auth.caller_of(request).await.map_err(|rejection| {
                if status::has_reason(&rejection, ErrorReason::CredentialRequired) {
                    status::unauthenticated(ErrorReason::CredentialRequired, FRESHNESS_NEEDS_CREDENTIAL)
                } else {
                    // The credential is not valid, or its lookup failed.
                    rejection
                }
            })?;
            if !caller.may(Permission::Validate) && !caller.may(Permission::Read) {
                return Err(lacks_permission(&caller, Permission::Validate));
            }
        }
        Ok(Some(requested))
    }
}

#[tonic::async_trait]
impl Validator for ValidatorHandler {
    async fn validate(
        &self,
        request: Request<ValidateRequest>,
    ) -> Result<Response<ValidateResponse>, Status> {
        let max_staleness = self.max_staleness(&request).await?;
        let lookups = CacheOnly::lookups(request.extensions(), Lookups::Unlimited);
        let request = request.into_inner();
        let scope_match = convert::scope_match(request.scope_match).map_err(status::invalid_field)?;
        let required =
            ScopeSet::parse("required_scopes", request.required_scopes).map_err(status::invalid_field)?;
        let validation = self
            .service
            .validate(request.secret, &required, scope_match, max_staleness, lookups)
            .await
            .map_err(status::from_service)?;
        Ok(Response::new(convert::validate_response(validation)))
    }

    type WatchChangesStream = BoxStream<'static, Result<WatchChangesResponse, Status>>;

    async fn watch_changes(
        &self,
        request: Request<WatchChangesRequest>,
    ) -> Result<Response<Self::WatchChangesStream>, Status> {
        let recheck = Recheck::of(&request, WATCH_CHANGES, Permission::Read)?;
        let position = decode(&request.get_ref().position).map_err(status::invalid_field)?;
        let from_repository = |error| status::from_service(ServiceError::Repository(error));
        let caller = recheck.caller().await?;
        let news = self.watcher.watch(position, &caller).map_err(from_repository)?;
        let responses = news.then(move |news| {
            let recheck = recheck.clone();
            async move {
                // The credential may have been revoked, or may have lost its scope, since the stream began.
                recheck.caller().await?;
                let News { position, events, staleness } = news.map_err(from_repository)?;
                Ok(convert::watch_response(encode(&position), events, staleness))
            }
        });
        // End the stream after its first error.
        let mut has_failed = false;
        let responses = responses.take_while(move |response| {
            let continues = !has_failed;
            has_failed = response.is_err();
            std::future::ready(continues)
        });
        Ok(Response::new(responses.boxed()))
    }
}

fn encode(position: &FeedPosition) -> String {
    let mut bytes = vec![POSITION_VERSION];
    bytes.extend(position.to_bytes());
    BASE64URL_NOPAD.encode(&bytes)
}

fn decode(position: &str) -> Result<Option<FeedPosition>, InvalidField> {
    if position.is_empty() {
        return Ok(None);
    }
    let bytes = BASE64URL_NOPAD.decode(position.as_bytes()).ok();
    let bytes = bytes.as_deref().and_then(|bytes| bytes.strip_prefix(&[POSITION_VERSION]));
    let position = bytes.and_then(FeedPosition::from_bytes);
    position.map(Some).ok_or_else(|| {
        let problem =
            "not a valid stream position; pass one from an earlier WatchChanges response, or leave it empty";
        InvalidField::new("position", problem)
    })
}
