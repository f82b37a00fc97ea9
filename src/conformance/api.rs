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
pub fn error_reason<T: std::fmt::Debug>(outcome: Result<Response<T>, Status>) -> (tonic::Code, String) {
    let status = outcome.unwrap_err();
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.domain, crate::grpc::ERROR_DOMAIN);
    (status.code(), info.reason)
}

/// Returns the field that the error names. Panics if `outcome` is not an error about one field.
pub fn invalid_field<T: std::fmt::Debug>(outcome: Result<Response<T>, Status>) -> String {
    let mut fields = invalid_fields(outcome);
    assert_eq!(fields.len(), 1, "{fields:?}");
    fields.remove(0)
}

/// Returns the fields that the error names, in the order of the error. Panics if `outcome` is not an error about fields.
pub fn invalid_fields<T: std::fmt::Debug>(outcome: Result<Response<T>, Status>) -> Vec<String> {
    let status = outcome.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
    assert_eq!(status.get_details_error_info().unwrap().reason, "INVALID_FIELD");
    let violations = status.get_details_bad_request().unwrap().field_violations;
    assert!(violations.iter().all(|violation| !violation.description.is_empty()), "{violations:?}");
    let message = status.message();
    assert!(message.starts_with(&format!("{}: ", violations[0].field)), "{message}");
    let others = violations.len() - 1;
    assert_eq!(message.contains(&format!("(and {others} more")), others > 0, "{message}");
    violations.into_iter().map(|violation| violation.field).collect()
}

/// Creates a test for each clause. The expression is a future that returns an [`Api`] and a value to keep for
/// the duration of the test.
#[macro_export]
macro_rules! api_conformance {
    ($subject:expr) => {
        $crate::api_conformance!(@tests $subject;
            create::a_created_key_has_the_requested_fields,
            create::every_field_round_trips,
            create::the_secret_is_returned_once,
            create::invalid_fields_of_create_are_named,
            create::a_retry_with_a_request_id_creates_no_second_key,
            create::an_invalid_request_id_is_rejected,
            create::new_texts_have_only_visible_characters,
            create::an_unknown_reserved_scope_is_not_grantable,
            validate::a_valid_key_is_allowed_and_described,
            validate::denial_reasons_follow_their_precedence,
            validate::denials_of_unknown_keys_describe_no_key,
            validate::required_scopes_match_all_or_any,
            validate::a_key_expires_at_its_expire_time,
            validate::the_last_use_is_recorded,
            validate::invalid_fields_of_validate_are_named,
            update::only_fields_in_the_mask_are_updated,
            update::an_update_to_equal_values_is_a_no_op,
            update::an_invalid_update_mask_is_rejected,
            update::an_outdated_revision_aborts_the_update,
            update::an_update_keeps_a_key_revoked,
            update::the_expiry_can_be_set_and_removed,
            rotate::both_keys_are_valid_during_the_overlap,
            rotate::without_overlap_the_old_key_is_revoked,
            rotate::the_successor_inherits_attributes_and_lifetime,
            rotate::inactive_keys_are_not_rotated,
            rotate::the_expiry_of_a_replaced_key_is_not_extended,
            rotate::invalid_fields_of_rotate_are_named,
            rotate::a_retry_with_a_request_id_creates_no_second_successor,
            rotate::concurrent_rotations_with_one_request_id_create_one_successor,
            rotate::rotating_a_replaced_key_returns_the_id_of_its_successor,
            revoke::a_revocation_denies_all_later_validations,
            revoke::a_revocation_is_idempotent,
            revoke::a_revocation_denies_concurrent_callers,
            delete::a_deleted_key_is_not_found,
            delete::an_outdated_revision_aborts_the_deletion,
            list::pages_list_every_key_once_newest_first,
            list::pages_stay_complete_during_changes,
            list::a_page_token_is_bound_to_its_filter,
            list::page_sizes_are_bounded,
            list::pages_are_limited_in_bytes,
            list::listings_filter_by_state_and_prefix,
            list::the_owner_filter_is_case_sensitive,
            list::ten_thousand_keys_are_streamed,
            errors::unknown_ids_are_not_found,
            errors::malformed_ids_are_invalid_fields,
            errors::ids_are_accepted_in_any_case,
            errors::all_invalid_fields_are_reported_at_once,
            events::events_outlive_their_key,
            events::pages_list_every_event_once,
            watch::changes_are_delivered_once_and_streams_resume,
            watch::watching_requires_a_credential_and_a_valid_position,
            watch::a_validation_reports_its_freshness,
            watch::a_validation_can_limit_its_staleness,
            import::an_imported_key_keeps_its_fields,
            import::an_imported_key_keeps_its_revocation_and_expiry,
            import::each_imported_key_has_its_own_outcome,
            import::a_repeated_import_changes_nothing,
            import::a_hash_of_a_deleted_revoked_key_is_not_imported,
            import::invalid_fields_of_import_are_named,
            import::new_texts_of_import_have_only_visible_characters,
            import::an_import_grants_no_unknown_reserved_scope,
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
