//! The storage contract that every backend implements, and the built-in backends.
//!
//! # Writing a backend
//!
//! `examples/custom_backend.rs` stores keys as JSON files in a folder. It is a complete backend with a server
//! of its own. The following steps apply to any backend.
//!
//! 1. **Implement [`KeyRepository`].** Only [`get_by_hash`](KeyRepository::get_by_hash),
//!    [`get`](KeyRepository::get), [`create`](KeyRepository::create), [`update`](KeyRepository::update),
//!    [`delete`](KeyRepository::delete) and [`list_by_owner`](KeyRepository::list_by_owner) are required. The
//!    other methods have default implementations, which are correct but not fast. Methods that can't be
//!    derived from these six fail with [`ErrorKind::NotOffered`] by default. [`MemoryRepository`] is the
//!    reference implementation to read beside the contract.
//! 2. **Store records, and leave decisions to the domain.** A repository calls
//!    [`ApiKey::check_update`](crate::domain::ApiKey::check_update) to check whether one record may replace
//!    another, and has no other rules about keys. [`StoredKey`] converts a key into a document, and checks
//!    documents that are read.
//! 3. **Order the changes.** Every change is assigned a [`Revision`](crate::domain::Revision) larger than all earlier ones of its
//!    hash, even after the key was deleted. The example stores the last one in a file. Every read that begins
//!    after a change was acknowledged has to see the change. So make the change durable before it is
//!    acknowledged. The example syncs a file and renames it.
//! 4. **Report failures as failures.** `Ok(None)` means that the key does not exist. If the lookup was not
//!    possible, return an `Err`. Callers act on its kind. Its cause is logged, so it must not contain a key,
//!    a hash or a password.
//! 5. **Make changes identifiable.** A change is identified by its revision and a random nonce
//!    ([`ChangeId`](crate::domain::ChangeId)), which the record and its event contain. A restored copy of the storage assigns the same
//!    revisions again, and the nonce distinguishes them. A backend that records which request created which
//!    key offers [`key_of_request`](KeyRepository::key_of_request), so that creations can be retried.
//! 6. **Run the suite.** Each rule of the contract has a test in `conformance::repository` (feature
//!    `conformance`):
//!
//!    ```
//!    # #[cfg(feature = "conformance")]
//!    mod my_backend {
//!        # use keyvouch::repository::{Backend, MemoryRepository};
//!        // An empty backend, and a value that is kept as long as the test runs.
//!        keyvouch::repository_conformance!(required: async { (Backend::new(MemoryRepository::new()), ()) });
//!    }
//!    ```
//! 7. **Offer capabilities.** A backend that reports changes to other replicas, stores events or records last
//!    uses implements [`ChangeFeed`], [`AuditTrail`] or [`UsageStore`], and adds them to its [`Backend`].
//!    [`StoredEvent`] converts an event into a document. [`Changes::of`] and [`RecentChanges::of`] build the
//!    answers of a feed with one partition. `examples/journal_backend` offers all capabilities.
//! 8. **Serve it.** [`App::with_backend`](crate::app::App::with_backend) serves any [`Backend`]. All its
//!    calls run on the runtime that created the app, not on the threads that serve clients.
//!
//! # Using the SQL backend in another program
//!
//! [`SqlRepository`] can be used without a server: see `examples/list_by_owner.rs`.

mod capabilities;
mod deadline;
mod defaults;
pub(crate) mod deletions;
mod error;
mod feed;
mod identity;
mod key_repository;
mod listing;
mod memory;
pub(crate) mod pages;
mod redis;
mod sql;
mod stored;
mod unreadable;

pub use capabilities::{AuditTrail, Backend, ChangeFeed, UsageStore};
pub(crate) use deadline::within;
pub use error::{ErrorKind, RepositoryError, Result};
pub(crate) use feed::partition_of;
pub use feed::{Changes, FeedItem, FeedPosition, RecentChanges, UnreadableEvent};
use feed::{Cursor, split};
pub use identity::BackendIdentity;
use key_repository::REQUEST_RETENTION;
pub use key_repository::{KeyRepository, KeyStream};
pub use listing::{
    EventPageRequest, EventPosition, Listed, ListedEvent, ListedKey, PagePosition, PageRequest,
};
pub use memory::MemoryRepository;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use redis::parse_record as parse_redis_record;
pub use redis::{RedisOptions, RedisRepository};
pub use sql::{PoolOptions, Pooling, SqlOptions, SqlRepository};
pub use stored::{StoredEvent, StoredKey};
pub use unreadable::unreadable_counts;

pub use crate::redis::{ClientCertificate, RedisFiles};
