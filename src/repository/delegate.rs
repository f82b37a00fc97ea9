//! Smart pointers to a repository are repositories.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use super::{
    Changes, EventPageRequest, FeedPosition, KeyRepository, KeyStream, ListedEvent, ListedKey, PageRequest,
    RecentChanges, Result, StoreIdentity,
};
use crate::domain::{
    ApiKey, ChangeContext, ChangeId, KeyFilter, KeyHash, KeyId, OwnerId, RequestDigest, Revision,
    RevokeReason, Rotation, Timestamp,
};

macro_rules! delegate {
    ($pointer:ident) => {
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<R: KeyRepository + ?Sized> KeyRepository for $pointer<R> {
            async fn get_by_hash(&self, hash: &KeyHash) -> Result<Option<ApiKey>> {
                (**self).get_by_hash(hash).await
            }

            async fn get_many_by_hash(&self, hashes: &[KeyHash]) -> Result<Vec<Result<Option<ApiKey>>>> {
                (**self).get_many_by_hash(hashes).await
            }

            fn prefers_many(&self) -> bool {
                (**self).prefers_many()
            }

            async fn get(&self, id: KeyId) -> Result<Option<ApiKey>> {
                (**self).get(id).await
            }

            async fn create(&self, key: ApiKey, context: &ChangeContext) -> Result<ApiKey> {
                (**self).create(key, context).await
            }

            async fn update(
                &self,
                key: ApiKey,
                expected: Revision,
                context: &ChangeContext,
            ) -> Result<ApiKey> {
                (**self).update(key, expected, context).await
            }

            async fn delete(&self, id: KeyId, context: &ChangeContext) -> Result<ChangeId> {
                (**self).delete(id, context).await
            }

            async fn delete_unchanged(
                &self,
                id: KeyId,
                expected: Revision,
                context: &ChangeContext,
            ) -> Result<ChangeId> {
                (**self).delete_unchanged(id, expected, context).await
            }

            fn list_by_owner(&self, owner: &OwnerId, filter: &KeyFilter) -> KeyStream {
                (**self).list_by_owner(owner, filter)
            }

            async fn revoke(
                &self,
                id: KeyId,
                reason: RevokeReason,
                context: &ChangeContext,
            ) -> Result<ApiKey> {
                (**self).revoke(id, reason, context).await
            }

            async fn rotate(&self, rotation: Rotation, context: &ChangeContext) -> Result<Rotation> {
                (**self).rotate(rotation, context).await
            }

            fn can_rotate(&self, old: &KeyHash, successor: &KeyHash) -> bool {
                (**self).can_rotate(old, successor)
            }

            async fn list_page(&self, request: &PageRequest) -> Result<Vec<ListedKey>> {
                (**self).list_page(request).await
            }

            async fn record_usage(&self, usage: &[(KeyId, Timestamp)]) -> Result<()> {
                (**self).record_usage(usage).await
            }

            async fn usage(&self, ids: &[KeyId]) -> Result<Vec<Option<Timestamp>>> {
                (**self).usage(ids).await
            }

            async fn create_many(
                &self,
                keys: Vec<ApiKey>,
                context: &ChangeContext,
            ) -> Result<Vec<Result<ApiKey>>> {
                (**self).create_many(keys, context).await
            }

            async fn list_events(&self, request: &EventPageRequest) -> Result<Vec<ListedEvent>> {
                (**self).list_events(request).await
            }

            fn feed_parts(&self) -> u8 {
                (**self).feed_parts()
            }

            async fn recent_changes(&self, limit: usize) -> Result<RecentChanges> {
                (**self).recent_changes(limit).await
            }

            fn wakes(&self) -> Option<BoxStream<'static, ()>> {
                (**self).wakes()
            }

            async fn changes(&self, after: Option<&FeedPosition>, limit: usize) -> Result<Changes> {
                (**self).changes(after, limit).await
            }

            async fn prune_events(&self, before: Timestamp) -> Result<u64> {
                (**self).prune_events(before).await
            }

            async fn key_of_request(&self, request: &RequestDigest) -> Result<Option<KeyId>> {
                (**self).key_of_request(request).await
            }

            fn can_create_for(&self, request: &RequestDigest, hash: &KeyHash) -> bool {
                (**self).can_create_for(request, hash)
            }

            async fn identity(&self) -> Result<Option<StoreIdentity>> {
                (**self).identity().await
            }

            async fn check_changes(&self) -> Result<()> {
                (**self).check_changes().await
            }

            async fn ping(&self) -> Result<()> {
                (**self).ping().await
            }
        }
    };
}

delegate!(Box);
delegate!(Arc);
