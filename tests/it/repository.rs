//! Runs the repository conformance tests on every backend.

use keyvouch::conformance::repository::Subject;
use keyvouch::domain::{ApiKey, ChangeContext, ChangeId, KeyFilter, KeyHash, KeyId, OwnerId, Revision};
use keyvouch::repository::{
    Backend, ErrorKind, KeyRepository, KeyStream, MemoryRepository, PageRequest, Result, SqlRepository,
};
use tempfile::TempDir;

use crate::databases::{Kind, PostgresVersion, few_connections, patient};
use crate::redis_servers::Redis;

mod memory {
    use super::*;
    keyvouch::repository_conformance!(all: async { (Subject::from(MemoryRepository::new()), ()) });
}

mod sqlite {
    use super::*;
    keyvouch::repository_conformance!(all: async {
        let (repository, folder) = open_sqlite().await;
        (Subject::from(repository), folder)
    });
}

mod postgres {
    use super::*;
    keyvouch::repository_conformance!(all: async {
        (Subject::from(Kind::Postgres.repository().await), ())
    });
}

mod postgres_14 {
    use super::*;
    keyvouch::repository_conformance!(all: async {
        (Subject::from(PostgresVersion::V14.server().repository().await), ())
    });
}

mod postgres_18 {
    use super::*;
    keyvouch::repository_conformance!(all: async {
        (Subject::from(PostgresVersion::V18.server().repository().await), ())
    });
}

/// PostgreSQL behind `PgBouncer` in transaction mode.
mod postgres_behind_a_pooler {
    use super::*;
    use crate::sql_servers::poolers::{Behind, shared_pooler};
    keyvouch::repository_conformance!(all: async {
        (Subject::from(Behind::new(shared_pooler()).await.repository(few_connections()).await), ())
    });
}

mod mariadb {
    use super::*;
    keyvouch::repository_conformance!(all: async {
        (Subject::from(Kind::MariaDb.repository().await), ())
    });
}

mod redis_alone {
    use super::*;
    keyvouch::repository_conformance!(sharded: async {
        (Subject::from(Redis::Alone.repository().await), ())
    });
}

mod redis_sentinel {
    use super::*;
    keyvouch::repository_conformance!(sharded: async {
        (Subject::from(Redis::Sentinel.repository().await), ())
    });
}

mod redis_cluster {
    use super::*;
    keyvouch::repository_conformance!(sharded: async {
        (Subject::from(Redis::Cluster.repository().await), ())
    });
}

mod valkey_alone {
    use super::*;
    keyvouch::repository_conformance!(sharded: async {
        (Subject::from(Redis::Valkey.repository().await), ())
    });
}

mod valkey_cluster {
    use super::*;
    keyvouch::repository_conformance!(sharded: async {
        (Subject::from(Redis::ValkeyCluster.repository().await), ())
    });
}

pub(crate) async fn open_sqlite() -> (SqlRepository, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let repository = SqlRepository::open_sqlite(&folder.path().join("kv.db"), patient()).await.unwrap();
    repository.migrate().await.unwrap();
    (repository, folder)
}

/// The conformance tests behind caches, as servers have them. Their behaviour must not differ.
mod cached {
    use super::*;
    use crate::cached::{Replica, options, redis};
    use crate::redis_servers::shared_url;
    use keyvouch::cache::StackOptions;

    /// Returns options with an additional cache in Redis, with key names of its own.
    pub(super) fn with_redis(kind: Redis) -> StackOptions {
        StackOptions {
            redis: Some(redis(&shared_url(kind), &crate::redis_servers::next_prefix())),
            ..options()
        }
    }

    pub(super) async fn start(backend: impl Into<Backend>, options: StackOptions) -> (Subject, Replica) {
        let replica = Replica::start(backend, &options).await;
        (replica.backend.clone(), replica)
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

    /// Redis is the backend and, under other names, the cache. The local cache is disabled.
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

    /// Valkey is the backend and, under other names, the cache. The local cache is disabled.
    mod valkey_and_valkey_cluster {
        use super::*;
        keyvouch::repository_conformance!(sharded: async {
            let options = StackOptions { local: None, ..with_redis(Redis::ValkeyCluster) };
            start(Redis::Valkey.repository().await, options).await
        });
    }

    /// The backend has no feed.
    mod required_methods_alone {
        use super::*;
        keyvouch::repository_conformance!(required: start(RequiredOnly::default(), with_redis(Redis::Alone)));
    }
}

/// The example of a minimal backend.
mod folder_of_files {
    use super::*;
    keyvouch::repository_conformance!(required: async {
        let folder = tempfile::tempdir().unwrap();
        (Subject::new(crate::custom_backend::Folder::open(folder.path()).unwrap()), folder)
    });
}

/// The example with all capabilities.
mod journal {
    use super::*;
    use crate::cached::{Replica, options};
    use crate::journal_backend::journal::Journal;
    use crate::support::until;

    fn open(folder: &TempDir) -> Backend {
        Backend::complete(Journal::open(&folder.path().join("keys.jsonl")).unwrap())
    }

    keyvouch::repository_conformance!(all: async {
        let folder = tempfile::tempdir().unwrap();
        (open(&folder), folder)
    });

    /// Two replicas share a journal. The cache of one replica honours a revocation by the other.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_revocation_reaches_another_replica() {
        let folder = tempfile::tempdir().unwrap();
        let a = Replica::start(open(&folder), &options()).await;
        let b = Replica::start(open(&folder), &options()).await;
        let key = a.create("secret").await;
        assert!(b.is_active(&key.hash).await);
        assert!(b.is_active(&key.hash).await, "from its cache");
        a.revoke(key.id).await;
        until("the revocation", async || !b.is_active(&key.hash).await).await;
    }
}

/// The methods that the author of a backend has to implement, and no others.
mod required_methods_alone {
    use super::*;
    keyvouch::repository_conformance!(required: async { (Subject::new(RequiredOnly::default()), ()) });
}

/// A backend that implements only the required methods, and uses the default implementation of all others.
#[derive(Debug, Default)]
pub(crate) struct RequiredOnly(MemoryRepository);

impl std::fmt::Display for RequiredOnly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RequiredOnly")
    }
}

impl From<RequiredOnly> for Backend {
    fn from(repository: RequiredOnly) -> Self {
        Self::new(repository)
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
async fn missing_functions_are_not_offered() {
    let subject = RequiredOnly::default();
    let request = PageRequest { owner_id: None, after: None, limit: 1 };
    assert_eq!(subject.list_page(&request).await.unwrap_err().kind(), ErrorKind::NotOffered);
}
