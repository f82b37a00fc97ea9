//! The service `Validator`.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use futures_util::stream::{BoxStream, StreamExt as _};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::pb::validator_server::Validator;
use super::pb::{ErrorReason, ValidateRequest, ValidateResponse, WatchChangesRequest, WatchChangesResponse};
use super::{AdminAuth, convert, status};
use crate::domain::{InvalidField, ScopeSet};
use crate::repository::FeedPosition;
use crate::service::{ChangeWatcher, News, ServiceError, ValidatorService};

const FRESHNESS_NEEDS_CREDENTIAL: &str = "to ask for less than the server's cache.min_staleness, this call needs the metadata `authorization: Bearer <admin token>`";

/// Answers `Validator`.
#[derive(Clone, Debug)]
pub struct ValidatorHandler {
    service: ValidatorService,
    watcher: ChangeWatcher,
    auth: AdminAuth,
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
        auth: AdminAuth,
        min_staleness: Duration,
    ) -> Self {
        Self { service, watcher, auth, min_staleness }
    }

    /// The staleness that a call accepts; `None`: whatever the server allows.
    fn max_staleness(
        &self,
        asked: Option<prost_types::Duration>,
        metadata: &MetadataMap,
    ) -> Result<Option<Duration>, Status> {
        let asked = asked.map(|asked| convert::from_proto_duration("max_staleness", asked)).transpose();
        let asked = asked.map_err(status::invalid_field)?;
        if asked.is_some_and(|asked| asked < self.min_staleness)
            && self.auth.authenticate(metadata, "").is_err()
        {
            return Err(status::unauthenticated(ErrorReason::CredentialRequired, FRESHNESS_NEEDS_CREDENTIAL));
        }
        Ok(asked)
    }
}

#[tonic::async_trait]
impl Validator for ValidatorHandler {
    async fn validate(
        &self,
        request: Request<ValidateRequest>,
    ) -> Result<Response<ValidateResponse>, Status> {
        let max_staleness = self.max_staleness(request.get_ref().max_staleness, request.metadata())?;
        let request = request.into_inner();
        let scope_match = convert::scope_match(request.scope_match).map_err(status::invalid_field)?;
        let required =
            ScopeSet::parse("required_scopes", request.required_scopes).map_err(status::invalid_field)?;
        let validation = self
            .service
            .validate(request.secret, &required, scope_match, max_staleness)
            .await
            .map_err(status::from_service)?;
        Ok(Response::new(convert::validate_response(validation)))
    }

    type WatchChangesStream = BoxStream<'static, Result<WatchChangesResponse, Status>>;

    async fn watch_changes(
        &self,
        request: Request<WatchChangesRequest>,
    ) -> Result<Response<Self::WatchChangesStream>, Status> {
        self.auth.authenticate(request.metadata(), "")?;
        let position = decode(&request.get_ref().position).map_err(status::invalid_field)?;
        let from_repository = |error| status::from_service(ServiceError::Repository(error));
        let news = self.watcher.watch(position).map_err(from_repository)?;
        let answers = news.map(move |news| match news {
            Ok(News { position, events, staleness }) => {
                Ok(convert::watch_response(encode(&position), events, staleness))
            }
            Err(error) => Err(from_repository(error)),
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
