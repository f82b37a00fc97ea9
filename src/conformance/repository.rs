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
            list::pages_of_all_owners_hold_every_key_once,
            usage::a_key_that_was_never_used_has_no_last_use,
            usage::the_latest_use_is_kept_whatever_the_order,
            usage::one_batch_can_name_a_key_twice,
            usage::large_batches_are_recorded_whole,
            usage::unknown_keys_are_ignored,
            usage::a_use_touches_neither_record_nor_revision,
            usage::a_use_does_not_bring_a_deleted_key_back,
            usage::a_re_created_key_was_never_used,
            request::it_makes_one_key_however_often_it_is_sent,
            request::a_rotation_is_recognised_too,
            request::of_retries_at_once_one_wins,
            read::an_installation_keeps_its_identity,
            events::a_record_names_the_change_that_made_it,
            events::every_change_is_in_the_audit_trail,
            events::the_audit_trail_can_be_narrowed,
            events::pages_of_events_neither_skip_nor_repeat,
            events::a_follower_sees_every_change_once_and_in_order,
            events::pruned_events_are_missed_by_nobody_unawares,
            events::the_end_of_the_feed_has_the_newest_events,
        );
    };
    (required: $subject:expr) => {
        $crate::repository_conformance!(@tests $subject;
            create::the_created_key_is_returned_with_a_revision,
            create::a_taken_id_is_refused_and_nothing_is_stored,
            create::a_taken_hash_is_refused_and_nothing_is_stored,
            create::many_keys_are_created_each_for_itself,
            create::of_creates_at_once_with_one_id_one_wins,
            create::of_creates_at_once_with_one_hash_one_wins,
            read::a_missing_key_is_none,
            read::many_hashes_are_looked_up_each_for_itself,
            read::revoked_and_expired_keys_are_returned,
            read::every_field_makes_the_round_trip,
            read::ids_and_hashes_find_their_own_key,
            update::an_update_is_stored_and_returned,
            update::an_update_leaves_other_keys_alone,
            update::an_old_revision_conflicts_and_changes_nothing,
            update::a_missing_key_is_not_created,
            update::what_is_final_can_not_be_changed,
            update::of_updates_at_once_of_one_revision_one_wins,
            revoke::a_revoked_key_is_kept_and_stays_revoked,
            revoke::the_first_revocation_stands,
            revoke::a_missing_key_is_not_found,
            revoke::it_holds_whatever_is_written_at_the_same_time,
            delete::a_deleted_key_is_gone_everywhere,
            delete::a_second_delete_finds_nothing,
            delete::a_changed_key_is_not_deleted_as_unchanged,
            delete::id_and_hash_are_free_again,
            delete::a_revoked_hash_is_not_revived,
            rotate::both_records_are_stored,
            rotate::a_conflict_stores_neither,
            rotate::a_taken_successor_stores_neither,
            rotate::of_rotations_at_once_one_wins,
            revision::it_grows_over_every_change,
            revision::it_grows_over_delete_and_re_create,
            list::the_newest_come_first_and_ties_are_stable,
            list::an_unknown_owner_has_no_keys,
            list::owners_are_compared_by_their_bytes,
            list::filters_narrow_it,
            list::pages_meet_without_gap_or_overlap,
            list::pages_neither_skip_nor_repeat_while_keys_come_and_go,
            list::ten_thousand_keys_are_streamed,
            read::it_answers_a_ping,
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
