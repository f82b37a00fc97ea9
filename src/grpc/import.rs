//! `ImportKeys`: a stream of keys in, an answer to each out.

use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use prometheus_client::metrics::counter::Counter;
use tonic::{Code, Status};
use tracing::{Instrument as _, Span};

use super::auth::Recheck;
use super::methods::{IMPORT_KEYS, name};
use super::status::Repeat;
use super::{convert, pb, status};
use crate::domain::{
    Description, InvalidField, KeyHash, KeyId, KeyName, KeyPrefix, Metadata, OwnerId, Revocation,
    RevokeReason, ScopeSet,
};
use crate::service::{Actor, Caller, ImportedKey, KeyStoreService, ServiceError};
use crate::telemetry::{Refusal, refused};

/// How many keys are stored at once, if so many have arrived.
const BATCH: usize = 500;

type Answer = Result<pb::ImportKeysResponse, Status>;

/// Stores the keys of `requests` as they arrive and answers each, in their order. Ends with an error if the store fails, if
/// the caller's credential is not valid any more, or if `requests` does: what had arrived by then is answered.
pub(super) fn answers(
    service: KeyStoreService,
    recheck: Recheck,
    refused_keys: Counter,
    requests: impl Stream<Item = Result<pb::ImportKeysRequest, Status>> + Send + 'static,
) -> BoxStream<'static, Answer> {
    // The stream is read after the handler returned: what it logs belongs to the call all the same.
    let call = Span::current();
    // The error that ends the requests comes with the messages that were read before it.
    let batches = requests.try_ready_chunks(BATCH).flat_map(|batch| match batch {
        Ok(batch) => stream::iter([Some(Ok(batch)), None]),
        Err(stream::TryReadyChunksError(batch, error)) => stream::iter([Some(Ok(batch)), Some(Err(error))]),
    });
    let answered = stream::try_unfold(
        (Box::pin(batches.filter_map(std::future::ready)), 0_i64),
        move |(mut batches, first)| {
            let (service, recheck, refused_keys) = (service.clone(), recheck.clone(), refused_keys.clone());
            let answer = async move {
                let Some(batch) = batches.next().await.transpose()? else {
                    return Ok::<_, Status>(None);
                };
                // The credential may have been revoked since the batch before, or have lost a scope.
                let caller = recheck.caller().await?;
                let answers = import(&service, batch, first, &caller, &refused_keys).await;
                let answers = answers.map_err(|error| status::from_change(error, Repeat::AlreadyExists))?;
                let next = first + i64::try_from(answers.len()).unwrap_or(0);
                Ok(Some((stream::iter(answers.into_iter().map(Ok)), (batches, next))))
            };
            answer.instrument(call.clone())
        },
    );
    answered.try_flatten().boxed()
}

/// Stores a batch whose first message has the index `first`.
async fn import(
    service: &KeyStoreService,
    batch: Vec<pb::ImportKeysRequest>,
    first: i64,
    caller: &Caller,
    refused_keys: &Counter,
) -> Result<Vec<pb::ImportKeysResponse>, ServiceError> {
    use pb::import_keys_response::Result as Outcome;
    let outcomes = service.import(batch.into_iter().map(imported_key).collect(), caller).await?;
    let answers = (first..).zip(outcomes).map(|(index, outcome)| {
        let outcome = match outcome {
            Ok(record) => Outcome::Key(convert::key_message(record)),
            Err(refusal) => {
                if matches!(refusal, ServiceError::ScopeNotGrantable(_)) {
                    refused_keys.inc();
                    tell_refusal(caller, &refusal);
                }
                Outcome::Error(status::into_message(&status::from_service(refusal)))
            }
        };
        pb::ImportKeysResponse { index, result: Some(outcome) }
    });
    Ok(answers.collect())
}

/// Of a key that its caller may not bring. The call itself is answered, so nobody else tells of it.
fn tell_refusal(caller: &Caller, refusal: &ServiceError) {
    let (Actor(actor), reason) = (caller.actor(), refusal.to_string());
    refused(&Refusal {
        method: name(IMPORT_KEYS),
        peer: None,
        actor: Some(&actor),
        code: Code::PermissionDenied,
        reason: &reason,
    });
}

/// The key in `request`, as far as it can be checked by itself.
pub(crate) fn imported_key(request: pb::ImportKeysRequest) -> Result<ImportedKey, InvalidField> {
    let Some(key) = request.key else {
        return Err(InvalidField::new(
            "key",
            "is missing: give its name, its owner_id and what else is known",
        ));
    };
    let hash = request.hash.try_into().map_err(|_| {
        InvalidField::new("hash", "has not 32 bytes: give the SHA-256 digest of the whole key string")
    })?;
    let time = |field, time: Option<prost_types::Timestamp>| {
        time.map(|time| convert::from_proto_time(field, time)).transpose()
    };
    let id = |field, id: &str| if id.is_empty() { Ok(None) } else { KeyId::parse(field, id).map(Some) };
    let reason = RevokeReason::parse("key.revoke_reason", key.revoke_reason)?;
    let revocation =
        time("key.revoke_time", key.revoke_time)?.map(|at| Revocation { at, reason: reason.clone() });
    if revocation.is_none() && reason != RevokeReason::default() {
        return Err(InvalidField::new("key.revoke_reason", "needs a revoke_time: give both or none"));
    }
    Ok(ImportedKey {
        id: id("key.id", &key.id)?,
        hash: KeyHash::from_bytes(hash),
        prefix: KeyPrefix::parse("key.prefix", key.prefix)?,
        name: KeyName::parse("key.name", key.name)?,
        description: Description::parse("key.description", key.description)?,
        owner_id: OwnerId::parse("key.owner_id", key.owner_id)?,
        scopes: ScopeSet::parse("key.scopes", key.scopes)?,
        metadata: Metadata::parse(key.metadata)?,
        created_at: time("key.create_time", key.create_time)?,
        expires_at: time("key.expire_time", key.expire_time)?,
        revocation,
        last_used_at: time("key.last_used_time", key.last_used_time)?,
        rotated_from: id("key.rotated_from", &key.rotated_from)?,
        replaced_by: id("key.replaced_by", &key.replaced_by)?,
        may_revive: request.allow_revoked_hash,
    })
}
