//! The service `KeyStore`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use prometheus_client::metrics::counter::Counter;
use prost::Message as _;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};

use super::auth::Recheck;
use super::methods::{IMPORT_KEYS, STREAM_KEYS};
use super::pb::key_store_server::KeyStore;
use super::status::Repeat;
use super::{convert, import, page_token, pb, status};
use crate::domain::{
    Description, InvalidField, KeyId, KeyName, Metadata, OwnerId, Revision, RevokeReason, ScopeSet,
};
use crate::repository::{EventPageRequest, ListedEvent};
use crate::service::{
    Caller, CallerSlot, CallerSlots, ClientRequestId, KeyStoreService, KeyUpdate, ListRequest, ListedPage,
    ListedRecord, NewKey, Permission, RotateRequest,
};

const DEFAULT_PAGE_SIZE: usize = 100;
const MAX_PAGE_SIZE: usize = 1_000;
/// Maximum size of a page, unless it has a single item. A thousand typical keys take a third of it.
const MAX_PAGE_BYTES: usize = 1024 * 1024;
/// Maximum number of pages that are assembled concurrently; further calls wait. A page takes about twice its encoded
/// size in memory.
const CONCURRENT_PAGES: usize = 4;
/// Maximum number of concurrent `StreamKeys` streams, and of `ImportKeys` streams: each keeps several of the largest
/// keys in memory.
const MAX_STREAMS: usize = 32;
/// Maximum number of them per caller.
const MAX_STREAMS_OF_ONE: usize = 16;
/// Time without progress after which a stream can lose its slot: its client has sent and read nothing, and another call
/// needs it.
const SILENT_FOR: Duration = Duration::from_secs(15);
/// Maximum number of concurrent calls that read a page of keys or events, waiting ones included.
const MAX_PAGE_CALLS: usize = 64;
/// Maximum number of them per caller.
const MAX_PAGE_CALLS_OF_ONE: usize = 16;

/// Implements the service `KeyStore`.
#[derive(Clone, Debug)]
pub struct KeyStoreHandler {
    service: KeyStoreService,
    refused_imports: Counter,
    pages: Arc<Semaphore>,
    page_calls: Arc<CallerSlots>,
    listings: Arc<CallerSlots>,
    imports: Arc<CallerSlots>,
}

impl KeyStoreHandler {
    /// Creates a handler that calls `service`. Requests must have the caller in their extensions: see
    /// [`Guard`](super::Guard).
    #[must_use]
    pub fn new(service: KeyStoreService) -> Self {
        let slots = || CallerSlots::new(MAX_STREAMS, MAX_STREAMS_OF_ONE, Some(SILENT_FOR));
        Self {
            service,
            refused_imports: Counter::default(),
            pages: Arc::new(Semaphore::new(CONCURRENT_PAGES)),
            page_calls: CallerSlots::new(MAX_PAGE_CALLS, MAX_PAGE_CALLS_OF_ONE, None),
            listings: slots(),
            imports: slots(),
        }
    }

    /// Sets the counter of import rows that are rejected because the caller lacks a permission.
    #[must_use]
    pub fn with_refused_imports(self, refused_imports: Counter) -> Self {
        Self { refused_imports, ..self }
    }
}

/// Returns the authenticated caller and the message.
///
/// # Errors
/// Fails with an internal error if the guard did not add the caller.
fn authenticated<T>(request: Request<T>) -> Result<(Caller, T), Status> {
    let (_, mut extensions, message) = request.into_parts();
    match extensions.remove::<Caller>() {
        Some(caller) => Ok((caller, message)),
        None => Err(status::internal("a call reached KeyStore without being authenticated")),
    }
}

#[tonic::async_trait]
impl KeyStore for KeyStoreHandler {
    async fn create_key(
        &self,
        request: Request<pb::CreateKeyRequest>,
    ) -> Result<Response<pb::CreateKeyResponse>, Status> {
        let (caller, request) = authenticated(request)?;
        let repeat = Repeat::of(&request.request_id);
        let new = new_key(request).map_err(status::invalid_field)?;
        let issued = self.service.create(new, &caller).await;
        let issued = issued.map_err(|error| status::from_change(error, repeat))?;
        Ok(Response::new(pb::CreateKeyResponse {
            key: Some(convert::key_message(issued.record)),
            secret: issued.secret.expose().to_owned(),
        }))
    }

    async fn get_key(
        &self,
        request: Request<pb::GetKeyRequest>,
    ) -> Result<Response<pb::GetKeyResponse>, Status> {
        let (_, request) = authenticated(request)?;
        let id = KeyId::parse("id", &request.id).map_err(status::invalid_field)?;
        let record = self.service.get(id).await.map_err(status::from_service)?;
        Ok(Response::new(pb::GetKeyResponse { key: Some(convert::key_message(record)) }))
    }

    async fn list_keys(
        &self,
        request: Request<pb::ListKeysRequest>,
    ) -> Result<Response<pb::ListKeysResponse>, Status> {
        let (caller, request) = authenticated(request)?;
        let page = self.page_request(request).map_err(status::invalid_field)?;
        let _slot = self.page_calls.take(&caller).ok_or_else(status::overloaded)?;
        // The semaphore is never closed.
        let _page = self.pages.acquire().await.ok();
        let listed = self.service.list(&page, MAX_PAGE_BYTES).await;
        Ok(Response::new(list_response(listed.map_err(status::from_service)?, &page)))
    }

    type StreamKeysStream = BoxStream<'static, Result<pb::StreamKeysResponse, Status>>;

    async fn stream_keys(
        &self,
        request: Request<pb::StreamKeysRequest>,
    ) -> Result<Response<Self::StreamKeysStream>, Status> {
        let recheck = Recheck::of(&request, STREAM_KEYS, Permission::Read)?;
        let (caller, request) = authenticated(request)?;
        let owner_id = convert::listed_owner(request.owner_id).map_err(status::invalid_field)?;
        let filter = convert::filter(&request.states, request.prefix, self.service.now())
            .map_err(status::invalid_field)?;
        let slot = self.listings.take(&caller).ok_or_else(status::overloaded)?;
        // The stream is polled after this method has returned. Its log entries belong to the span of the call
        // nevertheless.
        let call = tracing::Span::current();
        let keys = self.service.stream(owner_id, filter).map(move |listed| match listed {
            Ok(listed) => Ok(stream_response(listed)),
            Err(error) => Err(call.in_scope(|| status::from_service(error))),
        });
        Ok(Response::new(holding(slot, recheck.every_so_often(keys.boxed()))))
    }

    async fn update_key(
        &self,
        request: Request<pb::UpdateKeyRequest>,
    ) -> Result<Response<pb::UpdateKeyResponse>, Status> {
        let (caller, request) = authenticated(request)?;
        let expected = request.expected_revision.map(Revision::new);
        let (id, update) = key_update(request).map_err(status::invalid_field)?;
        let record = self.service.update(id, update, expected, &caller).await;
        let repeat = if expected.is_some() { Repeat::Aborted } else { Repeat::Overwrites };
        let record = record.map_err(|error| status::from_change(error, repeat))?;
        Ok(Response::new(pb::UpdateKeyResponse { key: Some(convert::key_message(record)) }))
    }

    async fn rotate_key(
        &self,
        request: Request<pb::RotateKeyRequest>,
    ) -> Result<Response<pb::RotateKeyResponse>, Status> {
        let (caller, request) = authenticated(request)?;
        let repeat = Repeat::of(&request.request_id);
        let (id, rotate) = rotate_request(request).map_err(status::invalid_field)?;
        let rotated = self.service.rotate(id, rotate, &caller).await;
        let rotated = rotated.map_err(|error| status::from_change(error, repeat))?;
        Ok(Response::new(pb::RotateKeyResponse {
            key: Some(convert::key_message(rotated.issued.record)),
            secret: rotated.issued.secret.expose().to_owned(),
            replaced: Some(convert::key_message(rotated.replaced)),
        }))
    }

    async fn revoke_key(
        &self,
        request: Request<pb::RevokeKeyRequest>,
    ) -> Result<Response<pb::RevokeKeyResponse>, Status> {
        let (caller, request) = authenticated(request)?;
        let id = KeyId::parse("id", &request.id).map_err(status::invalid_field)?;
        let reason = RevokeReason::parse("reason", request.reason).map_err(status::invalid_field)?;
        let record = self.service.revoke(id, reason, &caller).await;
        let record = record.map_err(|error| status::from_change(error, Repeat::Safe))?;
        Ok(Response::new(pb::RevokeKeyResponse { key: Some(convert::key_message(record)) }))
    }

    async fn delete_key(
        &self,
        request: Request<pb::DeleteKeyRequest>,
    ) -> Result<Response<pb::DeleteKeyResponse>, Status> {
        let (caller, request) = authenticated(request)?;
        let id = KeyId::parse("id", &request.id).map_err(status::invalid_field)?;
        let expected = request.expected_revision.map(Revision::new);
        let deleted = self.service.delete(id, expected, &caller).await;
        deleted.map_err(|error| status::from_change(error, Repeat::NotFound))?;
        Ok(Response::new(pb::DeleteKeyResponse {}))
    }

    type ImportKeysStream = BoxStream<'static, Result<pb::ImportKeysResponse, Status>>;

    async fn import_keys(
        &self,
        request: Request<Streaming<pb::ImportKeysRequest>>,
    ) -> Result<Response<Self::ImportKeysStream>, Status> {
        let recheck = Recheck::of(&request, IMPORT_KEYS, Permission::Write)?;
        let (caller, keys) = authenticated(request)?;
        let slot = self.imports.take(&caller).ok_or_else(status::overloaded)?;
        let refused = self.refused_imports.clone();
        Ok(Response::new(holding(slot, import::answers(self.service.clone(), recheck, refused, keys))))
    }

    async fn list_events(
        &self,
        request: Request<pb::ListEventsRequest>,
    ) -> Result<Response<pb::ListEventsResponse>, Status> {
        let (caller, request) = authenticated(request)?;
        let mut page = event_page_request(request).map_err(status::invalid_field)?;
        let _slot = self.page_calls.take(&caller).ok_or_else(status::overloaded)?;
        let limit = page.limit;
        // One event more than the page size shows whether there is a next page.
        page.limit += 1;
        let _page = self.pages.acquire().await.ok();
        let mut events = self.service.events(&page).await.map_err(status::from_service)?;
        let has_more = events.len() > limit;
        events.truncate(limit);
        let next = events.last().filter(|_| has_more).map(ListedEvent::position);
        let next_page_token = next.map_or_else(String::new, |next| page_token::encode_event(next, &page));
        let mut response = pb::ListEventsResponse { next_page_token, ..pb::ListEventsResponse::default() };
        for event in events {
            match event {
                ListedEvent::Read(event) => response.events.push(convert::event_message(event)),
                ListedEvent::Unreadable(position) => {
                    response.unreadable_revisions.push(position.revision.get());
                }
            }
        }
        Ok(Response::new(response))
    }
}

/// Holds `slot` until the stream ends. The stream ends with an error if it loses the slot.
fn holding<T: Send + 'static>(
    slot: CallerSlot,
    answers: BoxStream<'static, Result<T, Status>>,
) -> BoxStream<'static, Result<T, Status>> {
    let held = stream::unfold(Some((answers, slot)), |state| async {
        let (mut answers, slot) = state?;
        tokio::select! {
            answer = answers.next() => {
                slot.is_read();
                Some((answer?, Some((answers, slot))))
            }
            () = slot.lost() => Some((Err(status::overloaded()), None)),
        }
    });
    held.boxed()
}

fn page_size(asked: i32) -> Result<usize, InvalidField> {
    match usize::try_from(asked) {
        Err(_) => Err(InvalidField::new("page_size", "must not be negative; 0 means 100")),
        Ok(0) => Ok(DEFAULT_PAGE_SIZE),
        Ok(size) => Ok(size.min(MAX_PAGE_SIZE)),
    }
}

fn event_page_request(request: pb::ListEventsRequest) -> Result<EventPageRequest, InvalidField> {
    let key_id = match request.key_id.as_str() {
        "" => None,
        id => Some(KeyId::parse("key_id", id)?),
    };
    let owner_id = convert::listed_owner(request.owner_id)?;
    let mut page = EventPageRequest { key_id, owner_id, after: None, limit: page_size(request.page_size)? };
    page.after = page_token::decode_event(&request.page_token, &page)?;
    Ok(page)
}

impl KeyStoreHandler {
    fn page_request(&self, request: pb::ListKeysRequest) -> Result<ListRequest, InvalidField> {
        let limit = page_size(request.page_size)?;
        let owner_id = convert::listed_owner(request.owner_id)?;
        let filter = convert::filter(&request.states, request.prefix, self.service.now())?;
        let mut page = ListRequest { owner_id, filter, after: None, limit };
        page.after = page_token::decode(&request.page_token, &page)?;
        Ok(page)
    }
}

/// Creates the response for a page, and truncates it if its keys are large. It keeps at least one, so that listings
/// make progress.
fn list_response(page: ListedPage, request: &ListRequest) -> pb::ListKeysResponse {
    let mut response = pb::ListKeysResponse::default();
    let (mut bytes, mut last, mut next) = (0, None, page.next);
    for listed in page.records {
        let position = listed.position();
        match listed {
            ListedRecord::Read(record) => {
                let key = convert::key_message(record);
                bytes += key.encoded_len();
                if last.is_some() && bytes > MAX_PAGE_BYTES {
                    next = last;
                    break;
                }
                response.keys.push(key);
            }
            ListedRecord::Unreadable(position) => response.unreadable_ids.push(position.id.to_string()),
        }
        last = Some(position);
    }
    response.next_page_token = next.map_or_else(String::new, |next| page_token::encode(next, request));
    response
}

fn stream_response(listed: ListedRecord) -> pb::StreamKeysResponse {
    match listed {
        ListedRecord::Read(record) => {
            pb::StreamKeysResponse { key: Some(convert::key_message(record)), unreadable_id: String::new() }
        }
        ListedRecord::Unreadable(position) => {
            pb::StreamKeysResponse { key: None, unreadable_id: position.id.to_string() }
        }
    }
}

fn new_key(request: pb::CreateKeyRequest) -> Result<NewKey, InvalidField> {
    Ok(NewKey {
        name: KeyName::parse("name", request.name)?,
        owner_id: OwnerId::parse("owner_id", request.owner_id)?,
        description: Description::parse("description", request.description)?,
        scopes: ScopeSet::parse("scopes", request.scopes)?,
        metadata: Metadata::parse(request.metadata)?,
        prefix: request.prefix,
        expiry: convert::create_expiry(request.expiry)?,
        request_id: ClientRequestId::parse(request.request_id)?,
    })
}

fn rotate_request(request: pb::RotateKeyRequest) -> Result<(KeyId, RotateRequest), InvalidField> {
    let id = KeyId::parse("id", &request.id)?;
    let overlap = convert::overlap(request.overlap)?;
    let request_id = ClientRequestId::parse(request.request_id)?;
    Ok((id, RotateRequest { overlap, expiry: convert::rotate_expiry(request.expiry)?, request_id }))
}

fn key_update(request: pb::UpdateKeyRequest) -> Result<(KeyId, KeyUpdate), InvalidField> {
    let Some(key) = request.key else {
        return Err(InvalidField::new("key", "missing; set its id and the new values"));
    };
    let id = KeyId::parse("key.id", &key.id)?;
    let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
    if paths.is_empty() {
        return Err(InvalidField::new("update_mask", "missing; list the fields to update"));
    }
    let mut update = KeyUpdate::default();
    for (at, path) in paths.iter().enumerate() {
        // Bounds the work: each path is parsed once.
        if paths[..at].contains(path) {
            let problem = format!("repeats `{path}`; list each field once");
            return Err(InvalidField::new(format!("update_mask.paths[{at}]"), problem));
        }
        match path.as_str() {
            "name" => update.name = Some(KeyName::parse("key.name", &key.name)?),
            "description" => {
                update.description = Some(Description::parse("key.description", &key.description)?);
            }
            "scopes" => update.scopes = Some(ScopeSet::parse("key.scopes", &key.scopes)?),
            "metadata" => update.metadata = Some(Metadata::parse(key.metadata.clone())?),
            "expire_time" => {
                let expires_at =
                    key.expire_time.map(|time| convert::from_proto_time("key.expire_time", time));
                update.expires_at = Some(expires_at.transpose()?);
            }
            _ => {
                let problem =
                    "not an updatable field; use name, description, scopes, metadata or expire_time";
                return Err(InvalidField::new(format!("update_mask.paths[{at}]"), problem));
            }
        }
    }
    Ok((id, update))
}
