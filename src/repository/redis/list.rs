//! Listings. Every shard has its own listing, and the listings are merged, newest first.

use std::collections::VecDeque;

use fred::clients::Client;
use fred::interfaces::ClientLike as _;
use fred::prelude::Value;
use fred::types::{ClusterHash, CustomCommand};
use futures_util::future::try_join_all;
use prost::bytes::Bytes;

use super::RedisRepository;
use super::keyspace::{Member, SHARDS, Shard};
use super::record;
use crate::repository::unreadable::skipped_key;
use crate::repository::{ListedKey, PageRequest, Result};

/// Minimum number of members that are read to fill a page.
const MIN_READ: usize = 256;

/// The listing of one shard, read as far as it is needed.
struct ShardListing {
    name: String,
    /// The exclusive upper bound of the next read, as the argument of the command.
    below: Vec<u8>,
    read: VecDeque<Member>,
    is_exhausted: bool,
}

impl ShardListing {
    fn is_to_be_read(&self) -> bool {
        self.read.is_empty() && !self.is_exhausted
    }
}

impl RedisRepository {
    pub(super) async fn page_of_keys(&self, request: &PageRequest) -> Result<Vec<ListedKey>> {
        let below = match &request.after {
            None => b"+".to_vec(),
            Some(position) => [b"(".as_slice(), &Member::before(position)].concat(),
        };
        let name = |shard| match &request.owner_id {
            Some(owner) => self.keyspace.owner(shard, owner),
            None => self.keyspace.all(shard),
        };
        let mut shards: Vec<ShardListing> = Shard::all()
            .map(|shard| ShardListing {
                name: name(shard),
                below: below.clone(),
                read: VecDeque::new(),
                is_exhausted: false,
            })
            .collect();
        let mut page = Vec::new();
        loop {
            // Members of deleted keys have no record, so read some more.
            let wanted = (request.limit - page.len()).max(MIN_READ);
            let members = self.newest(&mut shards, wanted).await?;
            let is_last = members.len() < wanted;
            let keys = self.keys_of(&members).await?;
            page.extend(keys.into_iter().filter(|listed| match listed {
                ListedKey::Read(key) => request.selects(key),
                ListedKey::Unreadable(_) => true,
            }));
            if is_last || page.len() >= request.limit {
                page.truncate(request.limit);
                return Ok(page);
            }
        }
    }

    /// Returns the next `count` members of all shards, newest first. Returns fewer at the end.
    async fn newest(&self, shards: &mut [ShardListing], count: usize) -> Result<Vec<Member>> {
        // Read slightly more than an equal share, because the shards differ in size.
        let share = count / usize::from(SHARDS) + 8;
        let mut newest = Vec::with_capacity(count);
        while newest.len() < count {
            // A shard may have returned only invalid members. It has to be read again then.
            while shards.iter().any(ShardListing::is_to_be_read) {
                let empty = shards.iter_mut().filter(|shard| shard.is_to_be_read());
                try_join_all(empty.map(|shard| self.read_on(shard, share))).await?;
            }
            let next = shards.iter_mut().max_by(|a, b| a.read.front().cmp(&b.read.front()));
            match next.and_then(|shard| shard.read.pop_front()) {
                Some(member) => newest.push(member),
                None => break,
            }
        }
        Ok(newest)
    }

    async fn read_on(&self, shard: &mut ShardListing, count: usize) -> Result<()> {
        let count_text = count.to_string();
        let arguments: Vec<Value> = vec![
            shard.name.as_str().into(),
            Value::Bytes(shard.below.clone().into()),
            "-".into(),
            "LIMIT".into(),
            "0".into(),
            count_text.into(),
        ];
        // fred's own function does not support binary members.
        let command = CustomCommand::new_static("ZREVRANGEBYLEX", ClusterHash::FirstKey, false);
        let read = |client: Client| {
            let (command, arguments) = (command.clone(), arguments.clone());
            async move { client.custom(command, arguments).await }
        };
        let members: Vec<Bytes> = self.connection.read(read).await?;
        shard.is_exhausted = members.len() < count;
        for bytes in members {
            shard.below = [b"(".as_slice(), &bytes].concat();
            // Skip invalid members, which lead to no key.
            shard.read.extend(Member::parse(&bytes));
        }
        Ok(())
    }

    /// Returns the keys of `members`, in the same order, without keys that were deleted meanwhile.
    async fn keys_of(&self, members: &[Member]) -> Result<Vec<ListedKey>> {
        let members: Vec<_> = members.iter().filter_map(|it| Some((it.hash()?, it.position()?))).collect();
        let hashes: Vec<_> = members.iter().map(|(hash, _)| *hash).collect();
        let mut found = vec![None; hashes.len()];
        for (positions, stored) in self.records(&hashes).await {
            for (position, stored) in positions.into_iter().zip(stored?) {
                found[position] = stored;
            }
        }
        let found = found.into_iter().zip(members);
        let listed = found.filter_map(|(stored, (hash, position))| match record::parse_of(&hash, &stored?) {
            Ok(key) => Some(ListedKey::Read(key)),
            Err(error) => {
                skipped_key(position.id, &error);
                Some(ListedKey::Unreadable(position))
            }
        });
        Ok(listed.collect())
    }
}
