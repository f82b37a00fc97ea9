//! The statements that are more than a look-up.

use std::collections::BTreeMap;

use sea_orm::sea_query::{CaseStatement, Expr, ExprTrait as _, InsertStatement, OnConflict, Query};
use sea_orm::{
    ColumnTrait as _, Condition, ConnectionTrait, EntityTrait as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _, Select,
};

use super::convert::uuid_of;
use super::entity::{api_key, api_key_usage, revision_head};
use super::error::from_db;
use crate::domain::{KeyFilter, KeyId, KeyState, Revision, Timestamp};
use crate::repository::{ErrorKind, PagePosition, PageRequest, RepositoryError, Result};

/// The last revision that was given out.
pub(super) async fn head(connection: &impl ConnectionTrait) -> Result<Revision> {
    let head = revision_head::Entity::find().one(connection).await.map_err(from_db)?;
    let head = head.ok_or_else(|| RepositoryError::new(ErrorKind::Corrupt, "revision_head has no row"))?;
    Ok(Revision::new(head.revision))
}

/// A page of keys, newest first, ties in the order of descending ids.
pub(super) fn page(request: &PageRequest) -> Select<api_key::Entity> {
    let mut condition = filter_condition(&request.filter);
    if let Some(owner) = &request.owner_id {
        condition = condition.add(api_key::Column::OwnerId.eq(owner.as_str()));
    }
    if let Some(PagePosition { created_at, id }) = request.after {
        let created_at = created_at.as_micros();
        // The first term is implied by the second; it lets the index on the order find its place.
        condition = condition.add(api_key::Column::CreatedAt.lte(created_at)).add(
            Condition::any()
                .add(api_key::Column::CreatedAt.lt(created_at))
                .add(api_key::Column::Id.lt(uuid_of(id))),
        );
    }
    api_key::Entity::find()
        .filter(condition)
        .order_by_desc(api_key::Column::CreatedAt)
        .order_by_desc(api_key::Column::Id)
        .limit(u64::try_from(request.limit).unwrap_or(u64::MAX))
}

fn filter_condition(filter: &KeyFilter) -> Condition {
    let mut condition = Condition::all();
    if let Some(prefix) = &filter.prefix {
        condition = condition.add(api_key::Column::Prefix.eq(prefix.as_str()));
    }
    if filter.states.is_all() {
        return condition;
    }
    let states = [KeyState::Active, KeyState::Revoked, KeyState::Expired];
    let asked = states.into_iter().filter(|&state| filter.states.contains(state));
    condition.add(asked.fold(Condition::any(), |any, state| any.add(state_condition(state, filter.as_of))))
}

/// The same as [`ApiKey::state`](crate::domain::ApiKey::state).
fn state_condition(state: KeyState, now: Timestamp) -> Condition {
    let is_expired = api_key::Column::ExpiresAt.lte(now.as_micros());
    match state {
        KeyState::Revoked => Condition::all().add(api_key::Column::RevokedAt.is_not_null()),
        KeyState::Expired => Condition::all().add(api_key::Column::RevokedAt.is_null()).add(is_expired),
        KeyState::Active => Condition::all()
            .add(api_key::Column::RevokedAt.is_null())
            .add(api_key::Column::ExpiresAt.is_null().or(api_key::Column::ExpiresAt.gt(now.as_micros()))),
    }
}

/// Records the uses of keys that exist, in one statement, keeping the latest of each.
pub(super) fn record_usage(usage: &[(KeyId, Timestamp)]) -> Result<InsertStatement> {
    let mut latest = BTreeMap::new();
    for &(id, used_at) in usage {
        let known = latest.entry(id).or_insert(used_at);
        *known = used_at.max(*known);
    }
    let mut used_at = CaseStatement::new();
    for (&id, at) in &latest {
        used_at = used_at.case(api_key::Column::Id.eq(uuid_of(id)), at.as_micros());
    }
    let existing = Query::select()
        .column(api_key::Column::Id)
        .expr(used_at)
        .from(api_key::Entity)
        .and_where(api_key::Column::Id.is_in(latest.keys().copied().map(uuid_of)))
        .take();

    let stored = Expr::col((api_key_usage::Entity, api_key_usage::Column::LastUsedAt));
    let offered = Expr::col(("excluded", api_key_usage::Column::LastUsedAt));
    let later = CaseStatement::new().case(offered.clone().gt(stored.clone()), offered).finally(stored);
    let on_conflict = OnConflict::column(api_key_usage::Column::KeyId)
        .value(api_key_usage::Column::LastUsedAt, later)
        .to_owned();
    Query::insert()
        .into_table(api_key_usage::Entity)
        .columns([api_key_usage::Column::KeyId, api_key_usage::Column::LastUsedAt])
        .on_conflict(on_conflict)
        .select_from(existing)
        .map(|statement| statement.to_owned())
        .map_err(|error| RepositoryError::new(ErrorKind::Internal, error))
}
