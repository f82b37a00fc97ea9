//! The repository suite on every backend.

use std::sync::Arc;

use keyvouch::conformance::repository::Subject;
use keyvouch::domain::{ApiKey, ChangeContext, ChangeId, KeyFilter, KeyHash, KeyId, OwnerId, Revision};
use keyvouch::repository::{
    ErrorKind, KeyRepository, KeyStream, MemoryRepository, OnRuntime, PageRequest, Result, SqlRepository,
};
use tempfile::TempDir;

use crate::databases::{Kind, patient};
use crate::redis_servers::Redis;

mod memory {
    use super::*;
    keyvouch::repository_conformance!(all: async { (Arc::new(MemoryRepository::new()) as Subject, ()) });
}

mod memory_in_a_box {
    use super::*;
    keyvouch::repository_conformance!(all: async {
        let boxed: Box<dyn KeyRepository> = Box::new(MemoryRepository::new());
        (Arc::new(boxed) as Subject, ())
    });
}

mod memory_in_an_arc {
    use super::*;
    keyvouch::repository_conformance!(all: async {
        let shared: Arc<dyn KeyRepository> = Arc::new(MemoryRepository::new());
        (Arc::new(shared) as Subject, ())
    });
}

mod memory_on_another_runtime {
    use super::*;
    keyvouch::repository_conformance!(all: async {
        let handle = tokio::runtime::Handle::current();
        (Arc::new(OnRuntime::new(MemoryRepository::new(), handle)) as Subject, ())
    });
}

mod sqlite {
    use super::*;
    keyvouch::repository_conformance!(all: async {
        let (repository, folder) = open_sqlite().await;
        (Arc::new(repository) as Subject, folder)
    });
}

mod postgres {
    use super::*;
    keyvouch::repository_conformance!(all: async {
        (Arc::new(Kind::Postgres.repository().await) as Subject, ())
    });
}

mod mariadb {
    use super::*;
    keyvouch::repository_conformance!(all: async {
        (Arc::new(Kind::MariaDb.repository().await) as Subject, ())
    });
}

mod redis_alone {
    use super::*;
    keyvouch::repository_conformance!(sharded: async {
        (Arc::new(Redis::Alone.repository().await) as Subject, ())
    });
}

mod redis_sentinel {
    use super::*;
    keyvouch::repository_conformance!(sharded: async {
        (Arc::new(Redis::Sentinel.repository().await) as Subject, ())
    });
}

mod redis_cluster {
    use super::*;
    keyvouch::repository_conformance!(sharded: async {
        (Arc::new(Redis::Cluster.repository().await) as Subject, ())
    });
}

/// As a server runs it.
mod sqlite_on_another_runtime {
    use super::*;
    keyvouch::repository_conformance!(all: async {
        let (repository, folder) = open_sqlite().await;
        let handle = tokio::runtime::Handle::current();
        (Arc::new(OnRuntime::new(repository, handle)) as Subject, folder)
    });
}

pub(crate) async fn open_sqlite() -> (SqlRepository, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let repository = SqlRepository::open_sqlite(&folder.path().join("kv.db"), patient()).await.unwrap();
    repository.migrate().await.unwrap();
    (repository, folder)
}

/// Behind caches, as servers have them: the suite sees no difference.
mod cached {
    use super::*;
    use crate::cached::{Replica, options, redis};
    use crate::redis_servers::shared_url;
    use keyvouch::cache::StackOptions;

    /// The same with a cache in Redis, of names of its own.
    pub(super) fn with_redis(kind: Redis) -> StackOptions {
        StackOptions {
            redis: Some(redis(&shared_url(kind), &crate::redis_servers::next_prefix())),
            ..options()
        }
    }

    pub(super) async fn start(
        store: impl KeyRepository + 'static,
        options: StackOptions,
    ) -> (Subject, Replica) {
        let replica = Replica::start(store, &options).await;
        (Arc::clone(&replica.repository), replica)
    }

    mod memory {
        use super::*;
        keyvouch::repository_conformance!(all: start(MemoryRepository::new(), options()));
    }

    mod sqlite {
        use super::*;
        keyvouch::repository_conformance!(all: async {
            let (repository, folder) = open_sqlite().await;
            let (subject, replica) = start(repository, options()).await;
            (subject, (replica, folder))
        });
    }

    mod postgres_and_redis {
        use super::*;
        keyvouch::repository_conformance!(all: async {
            start(Kind::Postgres.repository().await, with_redis(Redis::Alone)).await
        });
    }

    mod mariadb_and_redis_cluster {
        use super::*;
        keyvouch::repository_conformance!(all: async {
            start(Kind::MariaDb.repository().await, with_redis(Redis::Cluster)).await
        });
    }

    /// Redis is the store and, under other names, the cache; there is none in the process.
    mod redis_and_redis {
        use super::*;
        keyvouch::repository_conformance!(sharded: async {
            let options = StackOptions { local: None, ..with_redis(Redis::Alone) };
            start(Redis::Alone.repository().await, options).await
        });
    }

    mod redis_cluster {
        use super::*;
        keyvouch::repository_conformance!(sharded: start(Redis::Cluster.repository().await, options()));
    }

    /// A backend without a feed.
    mod required_methods_alone {
        use super::*;
        keyvouch::repository_conformance!(required: start(RequiredOnly::default(), with_redis(Redis::Alone)));
    }
}

/// The example.
mod folder_of_files {
    use super::*;
    keyvouch::repository_conformance!(required: async {
        let folder = tempfile::tempdir().unwrap();
        (Arc::new(crate::custom_backend::Folder::open(folder.path()).unwrap()) as Subject, folder)
    });
}

/// What the author of a backend has to write, and no more.
mod required_methods_alone {
    use super::*;
    keyvouch::repository_conformance!(required: async { (Arc::new(RequiredOnly::default()) as Subject, ()) });
}

/// Leaves all but the required methods to their provided forms.
#[derive(Debug, Default)]
pub(crate) struct RequiredOnly(MemoryRepository);

impl std::fmt::Display for RequiredOnly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RequiredOnly")
    }
}

#[async_trait::async_trait]
impl KeyRepository for RequiredOnly {
    async fn get_by_hash(&self, hash: &KeyHash) -> Result<Option<ApiKey>> {
        self.0.get_by_hash(hash).await
    }

    async fn get(&self, id: KeyId) -> Result<Option<ApiKey>> {
        self.0.get(id).await
    }

    async fn create(&self, key: ApiKey, context: &ChangeContext) -> Result<ApiKey> {
        self.0.create(key, context).await
    }

    async fn update(&self, key: ApiKey, expected: Revision, context: &ChangeContext) -> Result<ApiKey> {
        self.0.update(key, expected, context).await
    }

    async fn delete(&self, id: KeyId, context: &ChangeContext) -> Result<ChangeId> {
        self.0.delete(id, context).await
    }

    fn list_by_owner(&self, owner: &OwnerId, filter: &KeyFilter) -> KeyStream {
        self.0.list_by_owner(owner, filter)
    }
}

#[tokio::test]
async fn a_backend_says_what_it_does_not_offer() {
    let subject = RequiredOnly::default();
    let request = PageRequest { owner_id: None, after: None, limit: 1 };
    assert_eq!(subject.list_page(&request).await.unwrap_err().kind(), ErrorKind::NotOffered);
    assert_eq!(subject.record_usage(&[]).await.unwrap_err().kind(), ErrorKind::NotOffered);
}
