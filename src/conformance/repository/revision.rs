//! Tests of revisions, which order the changes of a key.

use super::Subject;
use super::fixture::{NOW, at, context, create, id, key, reason};
use crate::domain::{ApiKey, Revision};

/// Creating, updating and revoking each assign a larger revision.
pub async fn revisions_grow_with_every_change(subject: Subject) {
    let created = create(&subject, key(1)).await;
    let next = ApiKey { updated_at: at(NOW + 9), ..created.clone() };
    let updated = subject.update(next, created.revision, &context()).await.unwrap();
    let revoked = subject.revoke(created.id, reason(""), &context()).await.unwrap();
    let deleted = subject.delete(created.id, &context()).await.unwrap();
    let revisions = [Revision::NONE, created.revision, updated.revision, revoked.revision, deleted.revision];
    assert!(revisions.is_sorted_by(|a, b| a < b), "{revisions:?}");
}

/// The revisions of a key that is re-created with the same hash continue to grow.
pub async fn revisions_grow_across_deletion_and_creation(subject: Subject) {
    let mut last = Revision::NONE;
    for _ in 0..3 {
        let created = create(&subject, key(1)).await;
        assert!(created.revision > last);
        last = subject.delete(id(1), &context()).await.unwrap().revision;
        assert!(last > created.revision);
    }
}
