//! Runs the API conformance tests against a running server, on every backend.

use keyvouch::repository::MemoryRepository;

use crate::databases::Kind;
use crate::redis_servers::{Redis, next_prefix, shared_url};
use crate::repository::open_sqlite;
use crate::support::{TestServer, config};

mod memory {
    use super::*;
    keyvouch::api_conformance!(async {
        let server = TestServer::start(MemoryRepository::new()).await;
        (server.api().await, server)
    });
}

mod sqlite {
    use super::*;
    keyvouch::api_conformance!(async {
        let (repository, folder) = open_sqlite().await;
        let server = TestServer::start(repository).await;
        (server.api().await, (server, folder))
    });
}

mod postgres {
    use super::*;
    keyvouch::api_conformance!(async {
        let repository = Kind::Postgres.repository().await;
        let server = TestServer::start(repository).await;
        (server.api().await, server)
    });
}

mod redis_alone {
    use super::*;
    keyvouch::api_conformance!(async {
        let repository = Redis::Alone.repository().await;
        let server = TestServer::start(repository).await;
        (server.api().await, server)
    });
}

mod redis_cluster {
    use super::*;
    keyvouch::api_conformance!(async {
        let repository = Redis::Cluster.repository().await;
        let server = TestServer::start(repository).await;
        (server.api().await, server)
    });
}

/// The server has both caches.
mod postgres_and_redis {
    use super::*;
    keyvouch::api_conformance!(async {
        let repository = Kind::Postgres.repository().await;
        let mut config = config();
        config.cache.redis.url = shared_url(Redis::Alone).into();
        config.cache.redis.prefix = next_prefix();
        let server = TestServer::start_with(repository, &config).await;
        (server.api().await, server)
    });
}

/// The server has no cache.
mod sqlite_uncached {
    use super::*;
    keyvouch::api_conformance!(async {
        let (repository, folder) = open_sqlite().await;
        let mut config = config();
        config.cache.local.enabled = false;
        let server = TestServer::start_with(repository, &config).await;
        (server.api().await, (server, folder))
    });
}

mod mariadb {
    use super::*;
    keyvouch::api_conformance!(async {
        let repository = Kind::MariaDb.repository().await;
        let server = TestServer::start(repository).await;
        (server.api().await, server)
    });
}
