//! The service `Validator`.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use futures_util::stream::{BoxStream, StreamExt as _};
use tonic::{Code, Request, Response, Status};

use super::auth::{Recheck, lacks_permission};
use super::methods::WATCH_CHANGES;
use super::pb::validator_server::Validator;
use super::pb::{ErrorReason, ValidateRequest, ValidateResponse, WatchChangesRequest, WatchChangesResponse};
use super::{Authenticator, convert, status};
use crate::domain::{InvalidField, ScopeSet};
use crate::repository::FeedPosition;
use crate::service::{ChangeWatcher, Lookups, News, Permission, ServiceError, ValidatorService};

const FRESHNESS_NEEDS_CREDENTIAL: &str = "to ask for less than the server's cache.min_staleness, this call needs the metadata `authorization: Bearer <admin token or key>`, or a client certificate that the server knows";

/// Request extension: the call is rejected if it would have to wait for a lookup.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FromCacheAlone;

/// Answers `Validator`.
#[derive(Clone, Debug)]
pub struct ValidatorHandler {
    service: ValidatorService,
    watcher: ChangeWatcher,
    auth: Authenticator,
    min_staleness: Duration,
}

/// The first byte of a position's text.
const POSITION_VERSION: u8 = 1;

impl ValidatorHandler {
    /// Answers by `service` and `watcher`. Who can't authenticate by `auth` can't ask for less than `min_staleness`.
    #[must_use]
    pub fn new(
        service: ValidatorService,
        watcher: ChangeWatcher,
        auth: Authenticator,
        min_staleness: Duration,
    ) -> Self {
        Self { service, watcher, auth, min_staleness }
    }

    /// The staleness that a call accepts; `None`: whatever the server allows.
    async fn max_staleness(&self, request: &Request<ValidateRequest>) -> Result<Option<Duration>, Status> {
        let Some(asked) = request.get_ref().max_staleness else {
            return Ok(None);
        };
        let asked = convert::from_proto_duration("max_staleness", asked).map_err(status::invalid_field)?;
        if asked < self.min_staleness {
            let caller = self.auth.caller_of(request).await.map_err(|rejection| {
                if rejection.code() == Code::Unauthenticated {
                    status::unauthenticated(ErrorReason::CredentialRequired, FRESHNESS_NEEDS_CREDENTIAL)
                } else {
                    // The backend may be down.
                    rejection
                }
            })?;
            if !caller.may(Permission::Validate) && !caller.may(Permission::Read) {
                return Err(lacks_permission(&caller, Permission::Validate));
            }
        }
        Ok(Some(asked))
    }
}

#[tonic::async_trait]
impl Validator for ValidatorHandler {
    async fn validate(
        &self,
        request: Request<ValidateRequest>,
    ) -> Result<Response<ValidateResponse>, Status> {
        let max_staleness = self.max_staleness(&request).await?;
        let from_cache_alone = request.extensions().get::<FromCacheAlone>().is_some();
        let request = request.into_inner();
        let lookups = if from_cache_alone { Lookups::Rejected } else { Lookups::Unlimited };
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
        let answers = news.then(move |news| {
            let recheck = recheck.clone();
            async move {
                // A credential may have been revoked since the stream began, or lost its scope.
                recheck.caller().await?;
                let News { position, events, staleness } = news.map_err(from_repository)?;
                Ok(convert::watch_response(encode(&position), events, staleness))
            }
        });
        // A stream that said why it ends has ended.
        let mut has_failed = false;
        let answers = answers.take_while(move |answer| {
            let goes_on = !has_failed;
            has_failed = answer.is_err();
            std::future::ready(goes_on)
        });
        Ok(Response::new(answers.boxed()))
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
        InvalidField::new("position", "is none: give the position of an answer of this method, or nothing")
    })
}
