//! Conformance tests of [`KeyRepository`](crate::repository::KeyRepository). Each clause gets a repository
//! without keys.

pub mod create;
pub mod delete;
pub mod events;
pub mod list;
pub mod read;
pub mod request;
pub mod revision;
pub mod revoke;
pub mod rotate;
pub mod update;
pub mod usage;

pub(super) mod fixture;

use crate::repository::Backend;

/// The backend under test.
pub type Subject = Backend;

/// Creates a test for each clause, run by tokio's multi-threaded runtime.
///
/// The expression is a future that returns an empty [`Subject`] and a value to keep for the duration of the
/// test, such as a temporary folder. `all` is for backends with all capabilities. `sharded` is for those of
/// them whose feed has several partitions. `required` is for backends without capabilities, which can't list
/// the keys of all owners.
///
/// ```
/// # #[cfg(feature = "conformance")]
/// mod my_backend {
///     # use keyvouch::repository::{Backend, MemoryRepository};
///     keyvouch::repository_conformance!(all: async { (Backend::from(MemoryRepository::new()), ()) });
/// }
/// ```
#[macro_export]
macro_rules! repository_conformance {
    (all: $subject:expr) => {
        $crate::repository_conformance!(sharded: $subject);
        $crate::repository_conformance!(@tests $subject;
            events::a_follower_sees_all_changes_in_one_order,
        );
    };
    (sharded: $subject:expr) => {
        $crate::repository_conformance!(required: $subject);
        $crate::repository_conformance!(@tests $subject;
            list::pages_of_all_owners_contain_every_key_once,
            usage::a_key_that_was_never_used_has_no_last_use,
            usage::the_latest_use_is_kept_whatever_the_order,
            usage::a_batch_can_contain_a_key_twice,
            usage::large_batches_are_recorded_completely,
            usage::unknown_keys_are_ignored,
            usage::a_use_changes_neither_record_nor_revision,
            usage::a_use_does_not_restore_a_deleted_key,
            usage::a_re_created_key_was_never_used,
            request::a_repeated_request_creates_one_key,
            request::a_repeated_rotation_is_recognised,
            request::of_concurrent_retries_one_succeeds,
            read::an_installation_keeps_its_identity,
            events::records_contain_the_identity_of_their_last_change,
            events::every_change_is_in_the_audit_trail,
            events::the_audit_trail_can_be_filtered,
            events::pages_of_events_neither_skip_nor_repeat,
            events::a_follower_sees_every_change_once_and_in_order,
            events::pruned_events_are_reported_to_followers,
            events::the_end_of_the_feed_has_the_newest_events,
        );
    };
    (required: $subject:expr) => {
        $crate::repository_conformance!(@tests $subject;
            create::the_created_key_is_returned_with_a_revision,
            create::an_id_in_use_is_rejected,
            create::a_hash_in_use_is_rejected,
            create::many_keys_are_created_independently,
            create::of_concurrent_creations_with_one_id_one_succeeds,
            create::of_concurrent_creations_with_one_hash_one_succeeds,
            read::a_missing_key_is_none,
            read::many_hashes_are_looked_up_independently,
            read::revoked_and_expired_keys_are_returned,
            read::every_field_survives_the_round_trip,
            read::ids_and_hashes_find_their_own_key,
            update::an_update_is_stored_and_returned,
            update::an_update_does_not_affect_other_keys,
            update::an_old_revision_conflicts_and_changes_nothing,
            update::a_missing_key_is_not_created,
            update::immutable_fields_can_not_be_changed,
            update::of_concurrent_updates_of_one_revision_one_succeeds,
            revoke::a_revoked_key_is_kept_and_stays_revoked,
            revoke::the_first_revocation_is_kept,
            revoke::a_missing_key_is_not_found,
            revoke::a_revocation_survives_concurrent_changes,
            delete::a_deleted_key_is_not_found,
            delete::a_second_deletion_is_not_found,
            delete::a_conditional_deletion_requires_the_revision,
            delete::the_id_and_the_hash_can_be_used_again,
            delete::a_revoked_hash_is_not_revived,
            rotate::both_records_are_stored,
            rotate::a_conflicting_rotation_stores_neither_record,
            rotate::a_successor_in_use_stores_neither_record,
            rotate::of_concurrent_rotations_one_succeeds,
            revision::revisions_grow_with_every_change,
            revision::revisions_grow_across_deletion_and_creation,
            list::the_newest_come_first_and_ties_are_stable,
            list::an_unknown_owner_has_no_keys,
            list::owners_are_compared_by_their_bytes,
            list::filters_select_keys,
            list::pages_have_no_gap_and_no_overlap,
            list::pages_neither_skip_nor_repeat_during_changes,
            list::ten_thousand_keys_are_streamed,
            read::pings_succeed,
        );
    };
    (@tests $subject:expr; $($group:ident::$clause:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $clause() {
                let (subject, _guard) = $subject.await;
                $crate::conformance::within_limit($crate::conformance::repository::$group::$clause(subject)).await;
            }
        )*
    };
}
