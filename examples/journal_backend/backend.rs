//! The traits of a backend, implemented for a journal.

use std::ops::Bound;

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use keyvouch::domain::{
    ApiKey, ChangeContext, ChangeId, ChangeKind, KeyFilter, KeyHash, KeyId, OwnerId, RequestDigest, Revision,
    RevokeReason, Rotation, Timestamp,
};
use keyvouch::repository::{
    AuditTrail, BackendIdentity, ChangeFeed, Changes, ErrorKind, EventPageRequest, FeedPosition,
    KeyRepository, KeyStream, Listed, ListedEvent, ListedKey, PageRequest, RecentChanges, Result, UsageStore,
};

use super::journal::Journal;
use super::state::Line;

#[async_trait]
impl KeyRepository for Journal {
    async fn get_by_hash(&self, hash: &KeyHash) -> Result<Option<ApiKey>> {
        self.read(|state| Ok(state.ids.get(hash).and_then(|id| state.keys.get(id)).cloned()))
    }

    async fn get(&self, id: KeyId) -> Result<Option<ApiKey>> {
        self.read(|state| Ok(state.keys.get(&id).cloned()))
    }

    async fn create(&self, key: ApiKey, context: &ChangeContext) -> Result<ApiKey> {
        self.change_one(context, |state| state.creation(key, context))
    }

    async fn update(&self, key: ApiKey, expected: Revision, context: &ChangeContext) -> Result<ApiKey> {
        self.change_one(context, |state| state.update(key, expected, ChangeKind::Updated))
    }

    async fn delete(&self, id: KeyId, context: &ChangeContext) -> Result<ChangeId> {
        let deleted =
            self.change_one(context, |state| Ok((state.find(id)?.clone(), ChangeKind::Deleted, Vec::new())))?;
        Ok(deleted.last_change())
    }

    fn list_by_owner(&self, owner: &OwnerId, filter: &KeyFilter) -> KeyStream {
        let keys = self.read(|state| {
            let keys = state.newest_keys().into_iter();
            Ok(keys.filter(|key| key.owner_id == *owner && filter.matches(key)).cloned().collect::<Vec<_>>())
        });
        match keys {
            Ok(keys) => stream::iter(keys.into_iter().map(|key| Ok(Listed::Read(key)))).boxed(),
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    }

    async fn revoke(&self, id: KeyId, reason: RevokeReason, context: &ChangeContext) -> Result<ApiKey> {
        // A revoked key stays as it is.
        let mut current = None;
        let revoked = self.change(context, |state| {
            let key = state.find(id)?;
            let Some(next) = key.revoked(reason, context.now) else {
                current = Some(key.clone());
                return Ok(Vec::new());
            };
            Ok(vec![state.update(next, key.revision, ChangeKind::Revoked)?])
        })?;
        revoked.into_iter().next().or(current).ok_or_else(|| ErrorKind::NotFound.into())
    }

    async fn rotate(&self, rotation: Rotation, context: &ChangeContext) -> Result<Rotation> {
        let Rotation { replaced, successor } = rotation;
        let changed = self.change(context, |state| {
            let created = state.creation(successor, context)?;
            let expected = replaced.revision;
            Ok(vec![state.update(replaced, expected, ChangeKind::Rotated)?, created])
        })?;
        let [replaced, successor] = changed.try_into().map_err(|_| ErrorKind::Internal)?;
        Ok(Rotation { replaced, successor })
    }

    async fn list_page(&self, request: &PageRequest) -> Result<Vec<ListedKey>> {
        self.read(|state| {
            let keys = state.newest_keys().into_iter().filter(|key| request.selects(key));
            Ok(keys.take(request.limit).cloned().map(Listed::Read).collect())
        })
    }

    async fn key_of_request(&self, request: &RequestDigest) -> Result<Option<KeyId>> {
        self.read(|state| Ok(state.requests.get(request.as_bytes().as_slice()).map(|(id, _)| *id)))
    }

    async fn identity(&self) -> Result<Option<BackendIdentity>> {
        self.read(|state| Ok(state.identity.map(BackendIdentity)))
    }
}

#[async_trait]
impl ChangeFeed for Journal {
    async fn changes(&self, after: Option<&FeedPosition>, limit: usize) -> Result<Changes> {
        self.read(|state| {
            let last = after.map(|position| position.last_change(0));
            if !state.has_all_events_after(last) {
                return Err(ErrorKind::PositionLost.into());
            }
            let first = Bound::Excluded(last.unwrap_or(ChangeId::NONE).revision.get());
            let newer = state.events.range((first, Bound::Unbounded)).take(limit);
            Ok(Changes::of(after, newer.map(|(_, event)| Listed::Read(event.clone())).collect()))
        })
    }

    async fn recent_changes(&self, limit: usize) -> Result<RecentChanges> {
        self.read(|state| {
            let newest = state.events.values().rev().take(limit).cloned().map(Listed::Read);
            let mut events: Vec<_> = newest.collect();
            events.reverse();
            Ok(RecentChanges::of(events, Revision::new(state.revision)))
        })
    }
}

#[async_trait]
impl AuditTrail for Journal {
    async fn list_events(&self, request: &EventPageRequest) -> Result<Vec<ListedEvent>> {
        self.read(|state| {
            let newest = state.events.values().rev().filter(|event| request.selects(event));
            Ok(newest.take(request.limit).cloned().map(Listed::Read).collect())
        })
    }

    async fn prune_events(&self, before: Timestamp) -> Result<u64> {
        self.write(|state| {
            let newest = state.events.keys().next_back().copied().unwrap_or_default();
            let pruned =
                state.events.iter().take_while(|(revision, event)| event.at < before && **revision < newest);
            let pruned = pruned.count() as u64;
            Ok(((pruned > 0).then_some(Line::Pruned(before.as_micros())), pruned))
        })
    }
}

#[async_trait]
impl UsageStore for Journal {
    async fn record_usage(&self, usage: &[(KeyId, Timestamp)]) -> Result<()> {
        let used: Vec<_> = usage.iter().map(|(id, at)| (id.as_uuid(), at.as_micros())).collect();
        self.write(|_| Ok(((!used.is_empty()).then_some(Line::Used(used)), ())))
    }

    async fn usage(&self, ids: &[KeyId]) -> Result<Vec<Option<Timestamp>>> {
        self.read(|state| Ok(ids.iter().map(|id| state.used.get(id).copied()).collect()))
    }
}
