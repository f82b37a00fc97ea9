//! The method `ImportKeys`: takes a stream of keys, and responds to each.

use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use prometheus_client::metrics::counter::Counter;
use tonic::{Code, Status};
use tracing::{Instrument as _, Span};

use super::auth::Recheck;
use super::methods::{IMPORT_KEYS, Method, name};
use super::status::{Repeat, from_transport};
use super::{convert, pb, status};
use crate::domain::{
    Description, InvalidField, KeyHash, KeyId, KeyName, KeyPrefix, Metadata, OwnerId, Revocation,
    RevokeReason, ScopeSet,
};
use crate::service::{Actor, Caller, ImportedKey, KeyStoreService, ServiceError};
use crate::telemetry::{Rejection, log_rejection};

/// Maximum number of keys per batch. A batch consists of the keys that have arrived when it starts.
const BATCH: usize = 500;

type ImportResponse = Result<pb::ImportKeysResponse, Status>;

/// Stores the keys of `requests` as they arrive, and returns a response to each, in the same order. The stream ends
/// with an error if the backend fails, if the caller's credential is no longer valid, or if `requests` ends with an
/// error. In the last case, the keys that arrived before the error are stored and get their responses first.
pub(super) fn responses(
    service: KeyStoreService,
    recheck: Recheck,
    rejected_imports: Counter,
    requests: impl Stream<Item = Result<pb::ImportKeysRequest, Status>> + Send + 'static,
) -> BoxStream<'static, ImportResponse> {
    // The stream is polled after the handler has returned. Its log entries belong to the span of the call nevertheless.
    let call = Span::current();
    // The error that ends the requests is returned together with the messages that were read before it.
    let requests = requests.map_err(|error| from_transport(&error, Method::of(IMPORT_KEYS)).unwrap_or(error));
    let batches = requests.try_ready_chunks(BATCH).flat_map(|batch| match batch {
        Ok(batch) => stream::iter([Some(Ok(batch)), None]),
        Err(stream::TryReadyChunksError(batch, error)) => stream::iter([Some(Ok(batch)), Some(Err(error))]),
    });
    let responses = stream::try_unfold(
        (Box::pin(batches.filter_map(std::future::ready)), 0_i64),
        move |(mut batches, first)| {
            let (service, recheck, rejected_imports) =
                (service.clone(), recheck.clone(), rejected_imports.clone());
            let response = async move {
                let Some(batch) = batches.next().await.transpose()? else {
                    return Ok::<_, Status>(None);
                };
                // The credential may have been revoked, or may have lost a scope, since the previous batch.
                let caller = recheck.caller().await?;
                let responses = import(&service, batch, first, &caller, &rejected_imports).await;
                let responses =
                    responses.map_err(|error| status::from_change(error, Repeat::AlreadyExists))?;
                let next = first + i64::try_from(responses.len()).unwrap_or(0);
                Ok(Some((stream::iter(responses.into_iter().map(Ok)), (batches, next))))
            };
            response.instrument(call.clone())
        },
    );
    responses.try_flatten().boxed()
}

/// Stores a batch whose first message has the index `first`.
async fn import(
    service: &KeyStoreService,
    batch: Vec<pb::ImportKeysRequest>,
    first: i64,
    caller: &Caller,
    rejected_imports: &Counter,
) -> Result<Vec<pb::ImportKeysResponse>, ServiceError> {
    use pb::import_keys_response::Result as Outcome;
    let outcomes = service.import(batch.into_iter().map(imported_key).collect(), caller).await?;
    let responses = (first..).zip(outcomes).map(|(index, outcome)| {
        let outcome = match outcome {
            Ok(record) => Outcome::Key(convert::key_message(record)),
            Err(rejection) => {
                if matches!(rejection, ServiceError::ScopeNotGrantable(_)) {
                    rejected_imports.inc();
                    log_rejected_row(caller, &rejection);
                }
                Outcome::Error(status::into_message(&status::from_service(rejection)))
            }
        };
        pb::ImportKeysResponse { index, result: Some(outcome) }
    });
    Ok(responses.collect())
}

/// Logs an import row that the caller may not create. The RPC itself succeeds, so the call layer does not log it.
fn log_rejected_row(caller: &Caller, rejection: &ServiceError) {
    let (Actor(actor), reason) = (caller.actor(), rejection.to_string());
    log_rejection(&Rejection {
        method: name(IMPORT_KEYS),
        peer: None,
        actor: Some(&actor),
        certificate: None,
        code: Code::PermissionDenied,
        reason: &reason,
    });
}

/// Parses the key in `request`. An error names the first invalid field only: an import can have many of them, and its
/// report has one line for each row. Checks everything that does not depend on stored keys or on the caller.
pub(crate) fn imported_key(request: pb::ImportKeysRequest) -> Result<ImportedKey, InvalidField> {
    let Some(key) = request.key else {
        return Err(InvalidField::new("key", "missing; set at least its name and owner_id"));
    };
    let hash = request.hash.try_into().map_err(|_| {
        InvalidField::new("hash", "must be exactly 32 bytes: the SHA-256 digest of the full key string")
    })?;
    let time = |field, time: Option<prost_types::Timestamp>| {
        time.map(|time| convert::from_proto_time(field, time)).transpose()
    };
    let id = |field, id: &str| if id.is_empty() { Ok(None) } else { KeyId::parse(field, id).map(Some) };
    let reason = RevokeReason::parse("key.revoke_reason", key.revoke_reason)?;
    let revocation =
        time("key.revoke_time", key.revoke_time)?.map(|at| Revocation { at, reason: reason.clone() });
    if revocation.is_none() && reason != RevokeReason::default() {
        return Err(InvalidField::new("key.revoke_reason", "needs key.revoke_time; set both or neither"));
    }
    Ok(ImportedKey {
        id: id("key.id", &key.id)?,
        hash: KeyHash::from_bytes(hash),
        prefix: KeyPrefix::parse("key.prefix", key.prefix)?,
        name: KeyName::parse_new("key.name", key.name)?,
        description: Description::parse_new("key.description", key.description)?,
        owner_id: OwnerId::parse_new("key.owner_id", key.owner_id)?,
        scopes: ScopeSet::parse("key.scopes", key.scopes)?,
        metadata: Metadata::parse_new(key.metadata)?,
        created_at: time("key.create_time", key.create_time)?,
        expires_at: time("key.expire_time", key.expire_time)?,
        revocation,
        last_used_at: time("key.last_used_time", key.last_used_time)?,
        rotated_from: id("key.rotated_from", &key.rotated_from)?,
        replaced_by: id("key.replaced_by", &key.replaced_by)?,
        may_revive: request.allow_revoked_hash,
    })
}
