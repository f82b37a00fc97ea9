//! The change feed and the audit trail, with one stream per shard. The audit trail merges the streams, newest
//! first. The change feed has a cursor in each stream.

use std::collections::BTreeMap;
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::StreamsInterface as _;
use fred::types::Key;
use fred::types::streams::XCap;
use futures_util::future::{join_all, try_join_all};
use uuid::Uuid;

use super::RedisRepository;
use super::keyspace::{self, Shard};
use super::record::parse_revision;
use crate::domain::{KeyEvent, KeyId, Revision, Timestamp};
use crate::repository::stored::corrupt;
use crate::repository::unreadable::skipped_event;
use crate::repository::{
    Changes, Cursor, ErrorKind, EventPageRequest, EventPosition, FeedItem, FeedPosition, ListedEvent,
    RecentChanges, Result, StoredEvent, split, within,
};

/// Number of events per read while they are filtered or pruned.
const BATCH: u64 = 500;

/// Timeout of a poll for one shard.
const SHARD_PATIENCE: Duration = Duration::from_secs(1);

type Entry = (String, BTreeMap<String, String>);

impl RedisRepository {
    pub(super) async fn page_of_events(&self, request: &EventPageRequest) -> Result<Vec<ListedEvent>> {
        let shards: Vec<_> = match request.key_id {
            Some(id) => vec![Shard::of_id(id)],
            None => Shard::all().collect(),
        };
        // The newest events of all shards are among the newest of each shard.
        let newest = shards.into_iter().map(|shard| self.newest_events(shard, request));
        let mut events: Vec<_> = try_join_all(newest).await?.into_iter().flatten().collect();
        events.sort_by_key(|event| std::cmp::Reverse(event.position()));
        events.truncate(request.limit);
        Ok(events)
    }

    /// Returns the newest events of one shard that `request` selects, at most `request.limit`.
    async fn newest_events(&self, shard: Shard, request: &EventPageRequest) -> Result<Vec<ListedEvent>> {
        let mut end = request.after.map_or_else(|| "+".to_owned(), |after| entry_id(after.revision));
        let selected = |item: FeedItem| match item {
            FeedItem::Read(event) => request.selects(&event).then_some(ListedEvent::Read(event)),
            // The key of an unreadable event is unknown, so only listings without a filter contain it.
            FeedItem::Unreadable(revision) => {
                let position = EventPosition { revision, key_id: KeyId::from_uuid(Uuid::nil()) };
                let is_selected = request.key_id.is_none()
                    && request.owner_id.is_none()
                    && request.after.is_none_or(|after| position < after);
                is_selected.then_some(ListedEvent::Unreadable(position))
            }
        };
        let count = if request.key_id.is_none() && request.owner_id.is_none() {
            BATCH.min(u64::try_from(request.limit).unwrap_or(BATCH) + 1)
        } else {
            BATCH
        };
        let mut found = Vec::new();
        loop {
            let entries = self.newest_entries(shard, &end, count).await?;
            let read = entries.len();
            let Some((last, _)) = entries.last() else { break };
            end = format!("({last}");
            for entry in entries {
                found.extend(selected(parse(entry)?));
            }
            if found.len() >= request.limit || u64::try_from(read).is_ok_and(|read| read < count) {
                break;
            }
        }
        found.truncate(request.limit);
        Ok(found)
    }

    pub(super) async fn changes_after(&self, after: Option<&FeedPosition>, limit: usize) -> Result<Changes> {
        let mut position = match after {
            Some(position) => position.clone(),
            // Without a position, begin with the oldest stored event.
            None => self.start().await?,
        };
        let asked = &position;
        // A hanging shard must not delay the changes of the others for as long as a lookup may take.
        let patience = self.options.timeout.min(SHARD_PATIENCE);
        let reads = Shard::all().map(|shard| async move {
            within(patience, self.events_after(shard, asked.cursor(shard.number()), limit)).await
        });
        let mut items = Vec::new();
        let (mut unanswered, mut last_error) = (Vec::new(), None);
        for (shard, read) in Shard::all().zip(join_all(reads).await) {
            match read {
                Ok(read) => items.extend(read.into_iter().map(|item| (shard.number(), item))),
                Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) => {
                    unanswered.push(shard.number());
                    last_error = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(error) = last_error
            && unanswered.len() == usize::from(keyspace::SHARDS)
        {
            return Err(error);
        }
        // Check the role last, because a server that accepts changes now also did when the events were read.
        self.connection.check_role().await?;
        // This keeps the order within each shard. Across shards, it is approximately the order of time.
        items.sort_by_key(|(_, item)| item.change().revision);
        items.truncate(limit);
        for (partition, item) in &items {
            position.advance(*partition, item.change());
        }
        let (events, unreadable) = split(items);
        Ok(Changes { events, unreadable, position, unanswered })
    }

    pub(super) async fn newest_changes(&self, limit: usize) -> Result<RecentChanges> {
        let newest = try_join_all(Shard::all().map(|shard| self.newest_of(shard, limit))).await?;
        self.connection.check_role().await?;
        let mut position = FeedPosition::beginning();
        let mut items = Vec::new();
        for (shard, (events, missing)) in Shard::all().zip(newest) {
            let number = shard.number();
            match events.last() {
                Some(last) => position.advance(number, last.change()),
                None => position.start(number, missing),
            }
            items.extend(events.into_iter().map(|item| (number, item)));
        }
        let (events, unreadable) = split(items);
        Ok(RecentChanges { events, unreadable, position })
    }

    /// Returns the newest events of a shard, oldest first, and the number of events that were trimmed.
    async fn newest_of(&self, shard: Shard, limit: usize) -> Result<(Vec<FeedItem>, u64)> {
        let count = u64::try_from(limit).unwrap_or(u64::MAX);
        let missing = self.missing(shard).await?;
        let newest = self.newest_entries(shard, "+", count).await?;
        let events = newest.into_iter().rev().map(parse).collect::<Result<_>>()?;
        Ok((events, missing))
    }

    /// Reads at most `count` entries of a shard's stream, newest first, from the entry `end` on.
    async fn newest_entries(&self, shard: Shard, end: &str, count: u64) -> Result<Vec<Entry>> {
        let name = self.keyspace.events(shard);
        let read = |client: Client| {
            let (name, end) = (name.clone(), end.to_owned());
            async move { client.xrevrange(name, end, "-", Some(count)).await }
        };
        self.connection.read(read).await
    }

    /// Reads at most `count` entries of a stream, oldest first, from the entry `start` on.
    async fn oldest_entries(&self, name: String, start: &str, count: u64) -> Result<Vec<Entry>> {
        let read = |client: Client| {
            let (name, start) = (name.clone(), start.to_owned());
            async move { client.xrange(name, start, "+", Some(count)).await }
        };
        self.connection.read(read).await
    }

    /// Returns the position before the oldest stored event of each shard.
    async fn start(&self) -> Result<FeedPosition> {
        let missing = try_join_all(Shard::all().map(|shard| self.missing(shard))).await?;
        let mut position = FeedPosition::beginning();
        for (shard, missing) in Shard::all().zip(missing) {
            position.start(shard.number(), missing);
        }
        Ok(position)
    }

    async fn events_after(&self, shard: Shard, cursor: Cursor, limit: usize) -> Result<Vec<FeedItem>> {
        let name = self.keyspace.events(shard);
        let start = match cursor {
            Cursor::Start { .. } => "-".to_owned(),
            Cursor::Event { revision, .. } => entry_id(revision),
        };
        let count = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        let entries = self.oldest_entries(name, &start, count).await?;
        let mut events: Vec<_> = entries.into_iter().map(parse).collect::<Result<_>>()?;
        match cursor {
            // Read the event at the cursor again. If it is missing or another one, events were trimmed or
            // the backend was rewound.
            Cursor::Event { .. } => match events.first() {
                Some(first) if cursor.is(first.change()) => {
                    events.remove(0);
                }
                _ => return Err(ErrorKind::PositionLost.into()),
            },
            // Count after the events were read, because events that are trimmed from now on are among them.
            Cursor::Start { missing } if self.missing(shard).await? == missing => {}
            Cursor::Start { .. } => return Err(ErrorKind::PositionLost.into()),
        }
        events.truncate(limit);
        Ok(events)
    }

    /// Returns the number of events of the shard that were trimmed. If the shard's count of events was lost,
    /// it starts again with the stored events, and the next change of the shard counts from there.
    async fn missing(&self, shard: Shard) -> Result<u64> {
        let keys = vec![Key::from(self.keyspace.events(shard)), Key::from(self.keyspace.head(shard))];
        let counted: Vec<u64> = self.connection.ask(&self.scripts.count, keys).await?;
        let &[kept, ever] = counted.as_slice() else {
            return Err(corrupt("invalid event count"));
        };
        Ok(ever.saturating_sub(kept))
    }

    pub(super) async fn prune_events_before(&self, before: Timestamp) -> Result<u64> {
        let pruned = try_join_all(Shard::all().map(|shard| self.prune_shard(shard, before))).await?;
        Ok(pruned.into_iter().sum())
    }

    /// Deletes events from before `before`, oldest first, but never the newest. Several replicas can prune
    /// concurrently, and each event counts for the one that trimmed it.
    async fn prune_shard(&self, shard: Shard, before: Timestamp) -> Result<u64> {
        let name = self.keyspace.events(shard);
        let newest = self.newest_entries(shard, "+", 1).await?;
        let Some((newest, _)) = newest.into_iter().next() else {
            return Ok(0);
        };
        let mut pruned = 0;
        loop {
            let oldest = self.oldest_entries(name.clone(), "-", BATCH).await?;
            let read = oldest.len();
            let mut first_kept = None;
            for (id, fields) in oldest {
                // The revision of an unreadable event approximates its time.
                let at = match parse((id.clone(), fields))? {
                    FeedItem::Read(event) => event.at,
                    FeedItem::Unreadable(revision) => {
                        Timestamp::from_micros(revision.get()).unwrap_or(Timestamp::MAX)
                    }
                };
                if id == newest || at >= before {
                    first_kept = Some(id);
                    break;
                }
                first_kept = Some(format!("{}-2", id.split('-').next().unwrap_or_default()));
            }
            let Some(first_kept) = first_kept else {
                return Ok(pruned);
            };
            let cap: XCap = ("MINID", "=", first_kept.as_str())
                .try_into()
                .map_err(|_| corrupt("a malformed entry id in an event stream"))?;
            let trim = |client: Client| {
                let (name, cap) = (name.clone(), cap.clone());
                async move { client.xtrim(name, cap).await }
            };
            let trimmed: u64 = self.connection.read(trim).await?;
            pruned += trimmed;
            if trimmed == 0 || u64::try_from(read).is_ok_and(|read| trimmed < read) {
                return Ok(pruned);
            }
        }
    }
}

/// Returns the id of an event in its stream.
fn entry_id(revision: Revision) -> String {
    format!("{}-1", revision.get())
}

/// Parses an entry. The revision of an unreadable event is returned nevertheless.
fn parse((id, fields): Entry) -> Result<FeedItem> {
    let revision = parse_revision(id.split('-').next().unwrap_or_default())?;
    match parse_event(revision, fields) {
        Ok(event) => Ok(FeedItem::Read(event)),
        Err(error) => {
            skipped_event(revision, &error);
            Ok(FeedItem::Unreadable(revision))
        }
    }
}

fn parse_event(revision: Revision, mut fields: BTreeMap<String, String>) -> Result<KeyEvent> {
    let event = fields.remove("event").ok_or_else(|| corrupt("a stream entry without an event"))?;
    StoredEvent::from_json(event.as_bytes())?.into_event(revision)
}
