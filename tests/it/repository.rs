//! The repository suite on every backend.

use std::sync::Arc;

use keyvouch::conformance::repository::Subject;
use keyvouch::repository::{KeyRepository, MemoryRepository, OnRuntime, SqlOptions, SqlRepository};
use tempfile::TempDir;

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

pub(crate) async fn open_sqlite() -> (SqlRepository, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let repository =
        SqlRepository::open_sqlite(&folder.path().join("kv.db"), SqlOptions::default()).await.unwrap();
    repository.migrate().await.unwrap();
    (repository, folder)
}
