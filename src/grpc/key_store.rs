//! The service `KeyStore`: converts requests and results, and limits the memory of concurrent listings and imports.

mod held_slot;
mod pages;
mod requests;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};

use self::held_slot::holding;
use self::pages::{MAX_PAGE_BYTES, events_response, list_response, stream_response};
use self::requests::{
    event_page_request, key_update, list_request, new_key, revoke_request, rotate_request, stream_request,
};
use super::auth::Recheck;
use super::methods::{IMPORT_KEYS, STREAM_KEYS};
use super::pb::key_store_server::KeyStore;
use super::status::Repeat;
use super::{convert, import, pb, status};
use crate::domain::{KeyId, Revision, Stopwatch};
use crate::service::{Caller, CallerSlot, CallerSlots, KeyStoreService, Permission};

/// Maximum number of pages that are assembled concurrently; further calls wait. A page takes about twice its encoded
/// size in memory.
const CONCURRENT_PAGES: usize = 4;
/// Maximum number of concurrent `StreamKeys` streams, and of `ImportKeys` streams: each keeps several of the largest
/// keys in memory.
const MAX_STREAMS: usize = 32;
/// Maximum number of these streams per caller, of each kind.
const MAX_STREAMS_PER_CALLER: usize = 16;
/// Time without progress after which a stream can lose its slot: its client has sent and read nothing, and another call
/// needs it.
const SILENT_FOR: Duration = Duration::from_secs(15);
/// Maximum number of concurrent calls that read a page of keys or events, waiting ones included.
const MAX_PAGE_CALLS: usize = 64;
/// Maximum number of these calls per caller.
const MAX_PAGE_CALLS_PER_CALLER: usize = 16;

/// Implements the service `KeyStore`.
#[derive(Clone, Debug)]
pub struct KeyStoreHandler {
    service: KeyStoreService,
    stopwatch: Arc<dyn Stopwatch>,
    rejected_imports: Counter,
    pages: Arc<Semaphore>,
    page_calls: Arc<CallerSlots>,
    listings: Arc<CallerSlots>,
    imports: Arc<CallerSlots>,
}

impl KeyStoreHandler {
    /// Creates a handler that calls `service`, and detects by `stopwatch` streams whose clients don't read. Requests must
    /// have the caller in their extensions: see [`Guard`](super::Guard).
    #[must_use]
    pub fn new(service: KeyStoreService, stopwatch: Arc<dyn Stopwatch>) -> Self {
        let slots = || CallerSlots::new(MAX_STREAMS, MAX_STREAMS_PER_CALLER, Some(SILENT_FOR));
        Self {
            service,
            stopwatch,
            rejected_imports: Counter::default(),
            pages: Arc::new(Semaphore::new(CONCURRENT_PAGES)),
            page_calls: CallerSlots::new(MAX_PAGE_CALLS, MAX_PAGE_CALLS_PER_CALLER, None),
            listings: slots(),
            imports: slots(),
        }
    }

    /// Returns the handler with a counter of import rows that are rejected because the caller lacks a permission.
    #[must_use]
    pub fn with_rejected_imports(self, rejected_imports: Counter) -> Self {
        Self { rejected_imports, ..self }
    }

    /// Takes a slot of `slots` for `caller`.
    ///
    /// # Errors
    /// Returns `RESOURCE_EXHAUSTED` if a limit is reached.
    fn take_slot(&self, slots: &Arc<CallerSlots>, caller: &Caller) -> Result<CallerSlot, Status> {
        slots.take(caller, self.stopwatch.moment()).ok_or_else(status::overloaded)
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
        let new = new_key(request, &self.service).map_err(status::invalid_field)?;
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
        let page = list_request(request, self.service.now()).map_err(status::invalid_field)?;
        let _slot = self.take_slot(&self.page_calls, &caller)?;
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
        let listed = stream_request(request, self.service.now());
        let (owner_id, filter) = listed.map_err(status::invalid_field)?;
        let slot = self.take_slot(&self.listings, &caller)?;
        // The stream is polled after this method has returned. Its log entries belong to the span of the call
        // nevertheless.
        let call = tracing::Span::current();
        let keys = self.service.stream(owner_id, filter).map(move |listed| match listed {
            Ok(listed) => Ok(stream_response(listed)),
            Err(error) => Err(call.in_scope(|| status::from_service(error))),
        });
        let keys = recheck.between_responses(keys.boxed());
        Ok(Response::new(holding(slot, Arc::clone(&self.stopwatch), keys)))
    }

    async fn update_key(
        &self,
        request: Request<pb::UpdateKeyRequest>,
    ) -> Result<Response<pb::UpdateKeyResponse>, Status> {
        let (caller, request) = authenticated(request)?;
        let expected = request.expected_revision.map(Revision::new);
        let (id, update) = key_update(request, self.service.now()).map_err(status::invalid_field)?;
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
        let (id, rotate) = rotate_request(request, &self.service).map_err(status::invalid_field)?;
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
        let (id, reason) = revoke_request(request).map_err(status::invalid_field)?;
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
        let slot = self.take_slot(&self.imports, &caller)?;
        let rejected = self.rejected_imports.clone();
        let responses = import::responses(self.service.clone(), recheck, rejected, keys);
        Ok(Response::new(holding(slot, Arc::clone(&self.stopwatch), responses)))
    }

    async fn list_events(
        &self,
        request: Request<pb::ListEventsRequest>,
    ) -> Result<Response<pb::ListEventsResponse>, Status> {
        let (caller, request) = authenticated(request)?;
        let mut page = event_page_request(request).map_err(status::invalid_field)?;
        let _slot = self.take_slot(&self.page_calls, &caller)?;
        let limit = page.limit;
        // One event more than the page size shows whether there is a next page.
        page.limit += 1;
        // The semaphore is never closed.
        let _page = self.pages.acquire().await.ok();
        let events = self.service.events(&page).await.map_err(status::from_service)?;
        Ok(Response::new(events_response(events, &page, limit)))
    }
}
