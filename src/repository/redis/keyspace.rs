//! The names of Redis keys, and how they map to hash slots.
//!
//! All data of one key is in one hash slot, by a tag in braces, which is the number of the shard. The shard
//! is determined by the first byte of the key's hash, which is also the last byte of its id. The hash and the
//! id therefore both lead to it.
//!
//! ```text
//! <prefix>{07}:key:<hash in hex>    the record: its revision, a space, and a StoredKey as JSON
//! <prefix>{07}:id:<id>              the key's member in the indexes, in hex, and its owner, as a deletion needs them
//! <prefix>{07}:owner:<owner>        sorted set of that owner's keys in this shard, by creation
//! <prefix>{07}:all                  sorted set of all keys in this shard, by creation
//! <prefix>{07}:usage                hash: id → last use in microseconds
//! <prefix>{07}:head                 hash: `revision`, the last one; `events`, the number of events ever made
//! <prefix>{07}:events               stream of the changes, each under its revision
//! <prefix>{07}:revoked:<hash>       the key with this hash was revoked, and deleted with the revision stored here
//! <prefix>{07}:request:<digest>     the id of the key that a request created; expires
//! <prefix>identity                  the identity of this installation
//! ```

use data_encoding::HEXLOWER;
use uuid::Uuid;

use crate::domain::{KeyHash, KeyId, OwnerId, RequestDigest, Timestamp};
use crate::repository::PagePosition;

/// Number of shards. It can't be changed, because it determines where data is stored.
pub(super) const SHARDS: u8 = 64;

/// One of the shards, which is in one hash slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Shard(u8);

impl Shard {
    pub(super) fn of_hash(hash: &KeyHash) -> Self {
        Self(hash.as_bytes()[0] % SHARDS)
    }

    pub(super) fn of_id(id: KeyId) -> Self {
        Self(id.hash_byte() % SHARDS)
    }

    pub(super) fn of_request(request: &RequestDigest) -> Self {
        Self(request.as_bytes()[0] % SHARDS)
    }

    /// Returns the shard of checks that need only one.
    pub(super) fn of_probe() -> Self {
        Self(0)
    }

    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..SHARDS).map(Self)
    }

    pub(super) fn number(self) -> u8 {
        self.0
    }
}

/// The names with one prefix.
#[derive(Clone, Debug)]
pub(super) struct Keyspace {
    prefix: String,
}

impl Keyspace {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// Returns the channel of wake-ups for followers.
    pub(super) fn channel(&self) -> String {
        format!("{}changes", self.prefix)
    }

    fn name(&self, shard: Shard, suffix: &str) -> String {
        let mut name = self.begin(shard, suffix.len());
        name.push_str(suffix);
        name
    }

    /// Returns the prefix of all names of `shard`, with capacity for `room` more bytes. Avoids `format!`,
    /// which is slow, because every lookup needs a name.
    fn begin(&self, shard: Shard, room: usize) -> String {
        let mut name = String::with_capacity(self.prefix.len() + "{00}:".len() + room);
        name.push_str(&self.prefix);
        name.push('{');
        name.extend([b'0' + shard.0 / 10, b'0' + shard.0 % 10].map(char::from));
        name.push_str("}:");
        name
    }

    pub(super) fn record(&self, hash: &KeyHash) -> String {
        let mut name = self.begin(Shard::of_hash(hash), "key:".len() + 2 * KeyHash::BYTES);
        name.push_str("key:");
        HEXLOWER.encode_append(hash.as_bytes(), &mut name);
        name
    }

    pub(super) fn id(&self, id: KeyId) -> String {
        self.name(Shard::of_id(id), &format!("id:{id}"))
    }

    pub(super) fn owner(&self, shard: Shard, owner: &OwnerId) -> String {
        self.name(shard, &format!("owner:{owner}"))
    }

    pub(super) fn revoked(&self, hash: &KeyHash) -> String {
        self.name(Shard::of_hash(hash), &format!("revoked:{}", hash.to_hex()))
    }

    pub(super) fn request(&self, request: &RequestDigest) -> String {
        let digest = HEXLOWER.encode(request.as_bytes());
        self.name(Shard::of_request(request), &format!("request:{digest}"))
    }

    pub(super) fn identity(&self) -> String {
        format!("{}identity", self.prefix)
    }

    /// Returns a name that is never used for data.
    pub(super) fn probe(&self, shard: Shard) -> String {
        self.name(shard, "probe")
    }

    pub(super) fn all(&self, shard: Shard) -> String {
        self.name(shard, "all")
    }

    pub(super) fn usage(&self, shard: Shard) -> String {
        self.name(shard, "usage")
    }

    pub(super) fn head(&self, shard: Shard) -> String {
        self.name(shard, "head")
    }

    pub(super) fn events(&self, shard: Shard) -> String {
        self.name(shard, "events")
    }
}

/// The member of a key in the indexes: bytes that sort by creation time and then by id, and end with the
/// hash.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Member(Vec<u8>);

impl Member {
    const BYTES: usize = 8 + 16 + KeyHash::BYTES;

    pub(super) fn new(created_at: Timestamp, id: KeyId, hash: &KeyHash) -> Self {
        let mut bytes = Self::before(&PagePosition { created_at, id });
        bytes.extend(hash.as_bytes());
        Self(bytes)
    }

    /// Returns bytes that sort directly before the key at `position`, and after all keys that follow it in a
    /// listing.
    pub(super) fn before(position: &PagePosition) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::BYTES);
        // Inverting the sign bit makes times before 1970 sort first.
        let sortable = position.created_at.as_micros().cast_unsigned() ^ (1 << 63);
        bytes.extend(sortable.to_be_bytes());
        bytes.extend(position.id.as_uuid().as_bytes());
        bytes
    }

    /// Parses a stored member. `None` if it has another length.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == Self::BYTES).then(|| Self(bytes.to_vec()))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the key's position in a listing. `None` if its time is out of range.
    pub(super) fn position(&self) -> Option<PagePosition> {
        let (created_at, rest) = self.0.split_first_chunk::<8>()?;
        let micros = (u64::from_be_bytes(*created_at) ^ (1 << 63)).cast_signed();
        let id = Uuid::from_bytes(*rest.first_chunk()?);
        Some(PagePosition { created_at: Timestamp::from_micros(micros)?, id: KeyId::from_uuid(id) })
    }

    pub(super) fn hash(&self) -> Option<KeyHash> {
        self.0.last_chunk().copied().map(KeyHash::from_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{SystemEntropy, sample_key};

    #[test]
    fn all_of_a_key_is_in_one_slot() {
        let (keyspace, key) = (Keyspace::new("kv:"), sample_key());
        let shard = Shard::of_hash(&key.hash);
        assert_eq!(Shard::of_id(key.id), shard);
        let tag = format!("kv:{{{:02}}}:", shard.number());
        for name in [
            keyspace.record(&key.hash),
            keyspace.id(key.id),
            keyspace.owner(shard, &key.owner_id),
            keyspace.all(shard),
            keyspace.usage(shard),
            keyspace.head(shard),
            keyspace.events(shard),
            keyspace.revoked(&key.hash),
            keyspace.request(&RequestDigest::of_rotation("actor", key.id, "request")),
        ] {
            assert!(name.starts_with(&tag), "{name}");
        }
        assert_eq!(Shard::all().count(), 64);
    }

    #[test]
    fn members_sort_by_creation_and_id_and_contain_the_hash() {
        let hash = KeyHash::of("secret");
        let id = || KeyId::generate(Timestamp::MIN, &hash, &SystemEntropy).unwrap();
        let (first, second) = {
            let (a, b) = (id(), id());
            (a.min(b), a.max(b))
        };
        let member = |micros, id| Member::new(Timestamp::from_micros(micros).unwrap(), id, &hash);
        let sorted = [member(-5, second), member(0, first), member(0, second), member(7, first)];
        assert!(sorted.is_sorted());
        assert_eq!(sorted[0].hash(), Some(hash));
        let position = PagePosition { created_at: Timestamp::from_micros(0).unwrap(), id: second };
        assert!(sorted[1].as_bytes() < Member::before(&position).as_slice());
        assert!(sorted[2].as_bytes() > Member::before(&position).as_slice());
        assert_eq!(sorted[0].position().unwrap().created_at.as_micros(), -5);
        assert_eq!(sorted[1].position().unwrap().id, first);
        assert_eq!(Member::parse(sorted[1].as_bytes()), Some(sorted[1].clone()));
        assert_eq!(Member::parse(b"short"), None);
    }
}
