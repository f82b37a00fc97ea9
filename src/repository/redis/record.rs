//! Records and index entries in Redis.
//!
//! A record is its revision, a space, and a [`StoredKey`] as JSON. The script that stores it adds the revision.

use data_encoding::HEXLOWER;

use super::keyspace::Member;
use crate::domain::{ApiKey, KeyHash, KeyId, OwnerId, Revision, Revocation, RevokeReason, Timestamp};
use crate::repository::stored::corrupt;
use crate::repository::{Result, StoredKey, unreadable};

/// Parses a record: its revision, a space and the document.
pub(crate) fn parse(stored: &[u8]) -> Result<ApiKey> {
    let space = stored.iter().position(|&byte| byte == b' ');
    let (revision, document) = stored.split_at(space.ok_or_else(|| corrupt("a record without a revision"))?);
    let revision = str::from_utf8(revision).map_err(|_| corrupt("a revision that is not a number"))?;
    StoredKey::from_json(document)?.into_key_at(parse_revision(revision)?)
}

/// Parses the record of `hash`.
///
/// # Errors
/// [`ErrorKind::Corrupt`](crate::repository::ErrorKind::Corrupt) if it is not a valid record, or the record of another key. The response to another
/// lookup must never decide about a key.
pub(super) fn parse_of(hash: &KeyHash, stored: &[u8]) -> Result<ApiKey> {
    let key = parse(stored)?;
    if key.hash == *hash { Ok(key) } else { Err(corrupt("the hash does not match the record")) }
}

/// Returns `stub` with the readable values of an invalid record.
pub(super) fn salvage(stored: &[u8], stub: ApiKey) -> ApiKey {
    let space = stored.iter().position(|&byte| byte == b' ').map_or(0, |space| space + 1);
    StoredKey::salvage(&stored[space..], stub)
}

pub(super) fn parse_revision(text: &str) -> Result<Revision> {
    text.parse().map(Revision::new).map_err(|_| corrupt("a revision that is not a number"))
}

/// The data to which the id of a key leads. It is sufficient for a deletion, even if the record can't be read
/// any more.
#[derive(Clone, Debug)]
pub(super) struct Index {
    pub hash: KeyHash,
    pub member: Member,
    pub owner_id: OwnerId,
}

impl Index {
    pub(super) fn of(key: &ApiKey) -> Self {
        let member = Member::new(key.created_at, key.id, &key.hash);
        Self { hash: key.hash, member, owner_id: key.owner_id.clone() }
    }

    /// Encodes the member, which ends with the hash, and the owner.
    pub(super) fn to_text(&self) -> String {
        format!("{} {}", HEXLOWER.encode(self.member.as_bytes()), self.owner_id)
    }

    /// Returns a revoked key, with defaults for all values that are not in the index.
    pub(super) fn revoked_key(&self, id: KeyId, reason: &RevokeReason, now: Timestamp) -> Result<ApiKey> {
        let created_at = self.member.position().map_or(now, |position| position.created_at);
        let revocation = Revocation { at: now, reason: reason.clone() };
        unreadable::revoked_key(id, self.hash, self.owner_id.clone(), created_at, revocation)
    }

    pub(super) fn parse(text: &str) -> Result<Self> {
        let problem = || corrupt("malformed index entry of a key id");
        let (member, owner_id) = text.split_once(' ').ok_or_else(problem)?;
        let member = HEXLOWER.decode(member.as_bytes()).map_err(|_| problem())?;
        let member = Member::parse(&member).ok_or_else(problem)?;
        let hash = member.hash().ok_or_else(problem)?;
        Ok(Self { hash, member, owner_id: OwnerId::parse("owner_id", owner_id).map_err(|_| problem())? })
    }
}
