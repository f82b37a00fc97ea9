//! Conformance tests of the two services, through their clients. Each clause gets a server whose backend has
//! no keys.

pub mod create;
pub mod delete;
pub mod errors;
pub mod events;
pub mod import;
pub mod list;
pub mod revoke;
pub mod rotate;
pub mod update;
pub mod validate;
pub mod watch;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_types::StatusExt as _;

use crate::grpc::pb;
use crate::grpc::pb::key_store_client::KeyStoreClient;
use crate::grpc::pb::validator_client::ValidatorClient;

/// A running server, and an admin token that it accepts.
#[derive(Clone, Debug)]
pub struct Api {
    channel: Channel,
    token: MetadataValue<Ascii>,
}

/// Interceptor that sends the admin token.
#[derive(Clone, Debug)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

impl Api {
    /// Creates a client of the server behind `channel`, with the admin token `token`.
    #[must_use]
    pub fn new(channel: Channel, token: &str) -> Self {
        let mut token: MetadataValue<Ascii> = format!("Bearer {token}").parse().unwrap();
        token.set_sensitive(true);
        Self { channel, token }
    }

    /// Returns a client of `KeyStore`.
    #[must_use]
    pub fn key_store(&self) -> KeyStoreClient<InterceptedService<Channel, Bearer>> {
        KeyStoreClient::with_interceptor(self.channel.clone(), Bearer(self.token.clone()))
    }

    /// Returns a client of `Validator` without a credential.
    #[must_use]
    pub fn validator(&self) -> ValidatorClient<Channel> {
        ValidatorClient::new(self.channel.clone())
    }

    /// Returns a client of `Validator` that sends the admin token.
    #[must_use]
    pub fn admin_validator(&self) -> ValidatorClient<InterceptedService<Channel, Bearer>> {
        ValidatorClient::with_interceptor(self.channel.clone(), Bearer(self.token.clone()))
    }

    /// Creates a key, and returns it with its secret.
    pub async fn create(&self, request: pb::CreateKeyRequest) -> (pb::Key, String) {
        let response = self.key_store().create_key(request).await.unwrap().into_inner();
        (response.key.unwrap(), response.secret)
    }

    /// Returns a key.
    pub async fn get(&self, id: &str) -> pb::Key {
        let request = pb::GetKeyRequest { id: id.into() };
        self.key_store().get_key(request).await.unwrap().into_inner().key.unwrap()
    }

    /// Revokes a key, and returns it.
    pub async fn revoke(&self, id: &str, reason: &str) -> pb::Key {
        let request = pb::RevokeKeyRequest { id: id.into(), reason: reason.into() };
        self.key_store().revoke_key(request).await.unwrap().into_inner().key.unwrap()
    }

    /// Validates a secret without requiring scopes.
    pub async fn validate(&self, secret: &str) -> pb::ValidateResponse {
        let request = pb::ValidateRequest { secret: secret.into(), ..pb::ValidateRequest::default() };
        self.validator().validate(request).await.unwrap().into_inner()
    }

    /// Returns the reason of the verdict on a secret, which is `Valid` if it is allowed.
    pub async fn reason(&self, secret: &str) -> pb::Reason {
        self.validate(secret).await.reason()
    }
}

/// Returns a small valid request.
#[must_use]
pub fn new_key() -> pb::CreateKeyRequest {
    pb::CreateKeyRequest { name: "name".into(), owner_id: "owner".into(), ..pb::CreateKeyRequest::default() }
}

/// Returns a duration of `seconds`.
#[must_use]
pub fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

/// Returns the code and the machine-readable reason of the error. Panics if `outcome` is not an error.
pub fn refusal<T: std::fmt::Debug>(outcome: Result<Response<T>, Status>) -> (tonic::Code, String) {
    let status = outcome.unwrap_err();
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.domain, crate::grpc::ERROR_DOMAIN);
    (status.code(), info.reason)
}

/// Returns the field that the error names. Panics if `outcome` is not an error about one field.
pub fn wrong_field<T: std::fmt::Debug>(outcome: Result<Response<T>, Status>) -> String {
    let status = outcome.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
    assert_eq!(status.get_details_error_info().unwrap().reason, "INVALID_FIELD");
    let mut violations = status.get_details_bad_request().unwrap().field_violations;
    assert_eq!(violations.len(), 1);
    assert!(!violations[0].description.is_empty());
    violations.remove(0).field
}

/// Creates a test for each clause. The expression is a future that returns an [`Api`] and a value to keep for
/// the duration of the test.
#[macro_export]
macro_rules! api_conformance {
    ($subject:expr) => {
        $crate::api_conformance!(@tests $subject;
            create::a_created_key_has_what_was_asked_for,
            create::every_field_makes_the_round_trip,
            create::the_secret_is_shown_once,
            create::wrong_fields_of_create_are_named,
            create::a_request_id_makes_a_retry_safe,
            create::an_odd_request_id_is_refused,
            create::reserved_scopes_that_nobody_holds_can_not_be_granted,
            validate::a_good_key_is_allowed_and_described,
            validate::the_first_reason_is_given_in_order,
            validate::denials_of_unknown_keys_tell_nothing,
            validate::scopes_are_matched_all_or_any,
            validate::a_key_expires_on_its_own,
            validate::its_use_is_recorded,
            validate::wrong_fields_of_validate_are_named,
            update::only_what_the_mask_names_is_changed,
            update::an_update_to_the_same_values_changes_nothing,
            update::the_mask_is_required_and_checked,
            update::an_old_revision_is_aborted,
            update::a_revoked_key_stays_revoked,
            update::an_expiry_can_be_set_and_taken_away,
            rotate::both_keys_are_valid_during_the_overlap,
            rotate::without_overlap_the_old_key_is_revoked,
            rotate::the_successor_has_the_attributes_and_the_lifetime,
            rotate::ended_keys_can_not_be_rotated,
            rotate::a_replaced_key_can_not_be_extended,
            rotate::wrong_fields_of_rotate_are_named,
            rotate::a_request_id_makes_a_retry_of_a_rotation_safe,
            rotate::a_request_id_makes_overlapping_rotations_safe,
            rotate::a_rotated_key_names_its_successor,
            revoke::it_holds_at_once_and_for_good,
            revoke::it_is_idempotent,
            revoke::no_call_that_begins_after_it_is_allowed,
            delete::a_deleted_key_is_gone,
            delete::an_old_revision_is_not_deleted,
            list::pages_hold_every_key_once_newest_first,
            list::pages_neither_skip_nor_repeat_while_keys_are_made_and_deleted,
            list::a_page_token_is_bound_to_its_filter,
            list::page_sizes_are_bounded,
            list::large_keys_make_short_pages,
            list::filters_narrow_a_listing,
            list::owners_differ_by_case,
            list::ten_thousand_keys_are_streamed,
            errors::unknown_ids_are_not_found,
            errors::odd_ids_are_wrong_fields,
            events::it_tells_what_was_done_to_a_key_that_is_gone,
            events::its_pages_hold_every_event_once,
            watch::changes_are_told_once_and_resumed,
            watch::it_needs_a_credential_and_a_position_of_its_own,
            watch::a_validation_says_how_fresh_it_is,
            watch::a_call_can_ask_for_less_staleness,
            import::an_imported_key_is_as_it_was_given,
            import::what_has_ended_elsewhere_stays_ended,
            import::each_key_has_its_answer,
            import::an_import_can_be_repeated,
            import::a_revoked_string_is_not_revived,
            import::wrong_fields_of_import_are_named,
            import::an_import_grants_no_reserved_scope_that_the_caller_lacks,
        );
    };
    (@tests $subject:expr; $($group:ident::$clause:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $clause() {
                let (api, _guard) = $subject.await;
                $crate::conformance::within_limit($crate::conformance::api::$group::$clause(api)).await;
            }
        )*
    };
}
