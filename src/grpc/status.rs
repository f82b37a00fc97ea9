//! The table that maps errors to statuses.
//!
//! Clients get fixed sentences, a machine-readable reason and the invalid field. The message of a driver is never sent
//! to clients; it is logged once, here.

use std::error::Error;
use std::time::Duration;

use prost::Message as _;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::field_limit::MAX_FIELDS;
use super::methods::Method;
use super::pb::ErrorReason;
use crate::domain::{EntropyError, InvalidField, InvalidFields, RotationRefused};
use crate::repository::{ErrorKind, RepositoryError};
use crate::service::{Precondition, ServiceError};
use crate::telemetry::{LogLimit, error_chain};

/// The domain of every `google.rpc.ErrorInfo` that Keyvouch sends.
pub const ERROR_DOMAIN: &str = "keyvouch";

/// Delay in `google.rpc.RetryInfo` of statuses that can be retried.
const RETRY_DELAY: Duration = Duration::from_secs(1);

pub(super) fn from_service(error: ServiceError) -> Status {
    match error {
        ServiceError::InvalidFields(error) => invalid_field(error),
        ServiceError::Precondition(error) => from_precondition(error),
        ServiceError::ScopeNotGrantable(_) => {
            status(Code::PermissionDenied, ErrorReason::ScopeNotGrantable, error.to_string())
        }
        ServiceError::AlreadyApplied(id) => {
            let message = format!(
                "request_id: an earlier request with this id created the key {id}; its secret can't be returned again, so \
                 rotate the key"
            );
            with_metadata(
                Code::AlreadyExists,
                ErrorReason::RequestAlreadyApplied,
                &message,
                ("key_id", id.to_string()),
            )
        }
        ServiceError::Repository(error) => from_repository(&error),
        ServiceError::Entropy(error) => from_entropy(&error),
    }
}

/// Maps an error of a call that changes keys. If the backend fails, it is unknown whether the change was applied;
/// `repeat` is what happens when the call is repeated.
pub(super) fn from_change(error: ServiceError, repeat: Repeat) -> Status {
    let ServiceError::Repository(failure) = &error else { return from_service(error) };
    if failure.is_unapplied() {
        return from_service(error);
    }
    let (code, reason, problem) = match failure.kind() {
        ErrorKind::Unavailable => {
            (Code::Unavailable, ErrorReason::StoreUnavailable, "the backend is unavailable")
        }
        ErrorKind::Timeout => (Code::DeadlineExceeded, ErrorReason::StoreTimeout, STORE_TIMEOUT_MESSAGE),
        ErrorKind::Internal => (Code::Internal, ErrorReason::Internal, INTERNAL_MESSAGE),
        _ => return from_service(error),
    };
    log(failure);
    let message = format!("{problem}; the change may still have been applied: {}", repeat.advice());
    if code == Code::Unavailable && repeat.is_harmless() {
        retryable(code, reason, &message)
    } else {
        status(code, reason, message)
    }
}

/// Effect of repeating a call that may have been applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// The call is idempotent.
    Safe,
    /// The repeated call returns `NOT_FOUND`.
    NotFound,
    /// The repeated call returns `ALREADY_EXISTS` for each key that was stored.
    AlreadyExists,
    /// The repeated call returns `ABORTED`, because the key no longer has the revision that the call expects.
    Aborted,
    /// The repeated call overwrites changes that others made in the meantime.
    Overwrites,
    /// The repeated call creates another key.
    MakesAnother,
}

impl Repeat {
    /// Returns the effect for a call that creates a key. `request_id` is empty if the call has none.
    pub(super) fn of(request_id: &str) -> Self {
        if request_id.is_empty() { Self::MakesAnother } else { Self::Safe }
    }

    /// Returns whether a client may repeat the call without checking first.
    fn is_harmless(self) -> bool {
        match self {
            Self::Safe | Self::NotFound | Self::AlreadyExists | Self::Aborted => true,
            Self::Overwrites | Self::MakesAnother => false,
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Self::Safe => "retry the call, which is safe",
            Self::NotFound => "retry the call; NOT_FOUND then means that the key is deleted",
            Self::AlreadyExists => "retry the call; ALREADY_EXISTS then means that a key is stored",
            Self::Aborted => {
                "retry the call; ABORTED then means that the key was changed, perhaps by this call"
            }
            Self::Overwrites => "read the key before you retry, or set `expected_revision`",
            Self::MakesAnother => {
                "list the keys before you retry, and set `request_id` so that a retry is safe"
            }
        }
    }
}

/// Maximum total size of the violations in a status. Statuses are sent in trailers, which clients limit: grpc-java to
/// 8 KiB by default, including the message and Base64.
const MAX_VIOLATION_BYTES: usize = 2_048;

/// Creates the status for invalid fields. The message has the first one and the number of all others, the details have as
/// many as fit into a status, and at least the first.
pub(super) fn invalid_field(error: impl Into<InvalidFields>) -> Status {
    let fields = error.into();
    let mut details = details_of(ErrorReason::InvalidField);
    let mut bytes = 0;
    for (index, InvalidField { field, problem }) in fields.iter().enumerate() {
        bytes += field.len() + problem.len();
        if index > 0 && bytes > MAX_VIOLATION_BYTES {
            break;
        }
        details.add_bad_request_violation(field, problem);
    }
    Status::with_error_details(Code::InvalidArgument, fields.to_string(), details)
}

/// Converts the status to a message, for use in a response.
pub(super) fn into_message(status: &Status) -> tonic_types::pb::Status {
    let whole = tonic_types::pb::Status::decode(status.details()).ok().filter(|it| it.code != 0);
    whole.unwrap_or_else(|| tonic_types::pb::Status {
        code: status.code().into(),
        message: status.message().to_owned(),
        details: Vec::new(),
    })
}

/// Returns whether `status` has this machine-readable reason.
pub(super) fn has_reason(status: &Status, reason: ErrorReason) -> bool {
    status.get_details_error_info().is_some_and(|info| info.reason == reason_text(reason))
}

/// Creates the status for a missing or invalid credential. The text is `message`.
pub(super) fn unauthenticated(reason: ErrorReason, message: &'static str) -> Status {
    status(Code::Unauthenticated, reason, message)
}

/// Creates the status for a caller that lacks a permission. The text is `message`.
pub(super) fn permission_denied(reason: ErrorReason, message: String) -> Status {
    status(Code::PermissionDenied, reason, message)
}

/// Creates the status for a call that exceeded its deadline.
pub(crate) fn deadline_exceeded() -> Status {
    let message = "deadline exceeded; if the call changes keys, the change may still have been applied";
    status(Code::DeadlineExceeded, ErrorReason::DeadlineExceeded, message)
}

/// Creates the status for a stream whose connection is being closed.
pub(crate) fn connection_ends() -> Status {
    let message = "the server is closing this connection; reconnect and resume (keys of an import without a response may still have been stored)";
    retryable(Code::Unavailable, ErrorReason::ConnectionEnds, message)
}

/// Creates the status for a message of more than `limit` bytes.
pub(crate) fn message_too_large(limit: usize) -> Status {
    let message =
        format!("the request exceeds the maximum size of {limit} bytes, before or after decompression");
    status(Code::ResourceExhausted, ErrorReason::MessageTooLarge, message)
}

/// Creates the status for a request with too many fields.
pub(super) fn too_many_fields() -> Status {
    let message = format!("the request has more than {MAX_FIELDS} fields");
    status(Code::ResourceExhausted, ErrorReason::MessageTooLarge, message)
}

/// Creates the status for a call with too many header fields.
pub(crate) fn too_many_header_fields() -> Status {
    let message = "the call has more than 64 header fields";
    status(Code::ResourceExhausted, ErrorReason::MessageTooLarge, message)
}

/// Creates the status for a call that is rejected because of load or because a limit is reached.
pub(crate) fn overloaded() -> Status {
    let message = "the server is overloaded, or a limit is reached; retry later";
    retryable(Code::ResourceExhausted, ErrorReason::Overloaded, message)
}

/// Creates the status for an error in the server. `cause` is only logged.
pub(super) fn internal(cause: &str) -> Status {
    tracing::error!(cause, "a call failed");
    status(Code::Internal, ErrorReason::Internal, INTERNAL_MESSAGE)
}

/// Creates the status for a call whose handler panicked. The panic has already been logged.
pub(crate) fn panicked() -> Status {
    status(Code::Internal, ErrorReason::Internal, INTERNAL_MESSAGE)
}

/// Maximum number of characters of an encoding's name in a message. All registered names are shorter.
const MAX_ENCODING_CHARS: usize = 32;

/// Metadata of a response: the encodings that requests can have. tonic adds it when it rejects an encoding.
pub(crate) const ACCEPTED_ENCODINGS: &str = "grpc-accept-encoding";

/// Replaces a status that tonic created before a handler got the message of a call of `method`, which is `None` for an
/// unknown method. Returns `None` for statuses of handlers, and for those that are not caused by the request.
pub(crate) fn from_transport(transport: &Status, method: Option<&Method>) -> Option<Status> {
    if !transport.details().is_empty() {
        return None;
    }
    let (code, reason, message) = match transport.code() {
        // The decoder returns the first for the size of a message, and the second for its size after decompression.
        Code::OutOfRange | Code::ResourceExhausted => {
            return method.map(|method| message_too_large(method.service.max_message_bytes()));
        }
        // The decoder returns INTERNAL for malformed messages. INTERNAL of our own has details.
        Code::Internal => {
            (Code::InvalidArgument, ErrorReason::MessageMalformed, "the request could not be decoded")
        }
        Code::Unimplemented => match transport.metadata().get(ACCEPTED_ENCODINGS) {
            Some(accepted) => return Some(unsupported_encoding(transport.message(), accepted)),
            None => (Code::Unimplemented, ErrorReason::MethodUnknown, "unknown method"),
        },
        _ => return None,
    };
    Some(status(code, reason, message))
}

/// Creates the status for a request with an unsupported encoding, which `message`, by tonic, has in backticks.
fn unsupported_encoding(message: &str, accepted: &MetadataValue<Ascii>) -> Status {
    let encoding: String =
        message.split('`').nth(1).unwrap_or("?").chars().take(MAX_ENCODING_CHARS).collect();
    let message = format!(
        "the request is compressed with `{encoding}`, which is not supported; use one of {}",
        accepted.to_str().unwrap_or("identity")
    );
    let mut status = status(Code::Unimplemented, ErrorReason::EncodingUnsupported, message);
    status.metadata_mut().insert(ACCEPTED_ENCODINGS, accepted.clone());
    status
}

const INTERNAL_MESSAGE: &str =
    "internal error; the server's log has the cause under this call's x-request-id";
const STORE_TIMEOUT_MESSAGE: &str = "the backend did not respond in time";

fn from_precondition(error: Precondition) -> Status {
    let message = error.to_string();
    let reason = match error {
        Precondition::Rotation(RotationRefused::Revoked) => ErrorReason::KeyRevoked,
        Precondition::Rotation(RotationRefused::Expired) => ErrorReason::KeyExpired,
        Precondition::Rotation(RotationRefused::Replaced(successor))
        | Precondition::ReplacedKeyExtended(successor) => {
            let successor = ("replaced_by", successor.to_string());
            return with_metadata(Code::FailedPrecondition, ErrorReason::KeyReplaced, &message, successor);
        }
    };
    status(Code::FailedPrecondition, reason, message)
}

fn from_entropy(error: &EntropyError) -> Status {
    log(error);
    status(Code::Internal, ErrorReason::Internal, INTERNAL_MESSAGE)
}

fn from_repository(error: &RepositoryError) -> Status {
    match error.kind() {
        ErrorKind::AlreadyExists => {
            status(Code::AlreadyExists, ErrorReason::KeyAlreadyExists, "a key with this id or hash exists")
        }
        ErrorKind::RevokedHash => status(
            Code::FailedPrecondition,
            ErrorReason::HashRevoked,
            "a key with this hash was revoked and deleted; set allow_revoked_hash to make it valid again",
        ),
        ErrorKind::NotFound => status(Code::NotFound, ErrorReason::KeyNotFound, "key not found"),
        ErrorKind::Conflict => status(
            Code::Aborted,
            ErrorReason::RevisionMismatch,
            "the key was changed by another call; read it again and retry",
        ),
        ErrorKind::Refused => status(
            Code::FailedPrecondition,
            ErrorReason::ChangeRefused,
            "the update would change an immutable field",
        ),
        ErrorKind::NotOffered => {
            let message = "the backend does not support this operation";
            status(Code::Unimplemented, ErrorReason::NotOffered, message)
        }
        ErrorKind::PositionLost => status(
            Code::OutOfRange,
            ErrorReason::FeedPositionLost,
            "changes after this stream position may be missing; empty the cache and start again without a position",
        ),
        ErrorKind::Overloaded => overloaded(),
        ErrorKind::Unavailable | ErrorKind::Unusable => {
            log(error);
            let message = "the backend is unavailable; retry later";
            retryable(Code::Unavailable, ErrorReason::StoreUnavailable, message)
        }
        ErrorKind::Timeout => {
            log(error);
            status(Code::DeadlineExceeded, ErrorReason::StoreTimeout, STORE_TIMEOUT_MESSAGE)
        }
        ErrorKind::Corrupt => {
            log(error);
            status(Code::Internal, ErrorReason::RecordCorrupt, "the stored record can't be read")
        }
        ErrorKind::Internal => {
            log(error);
            status(Code::Internal, ErrorReason::Internal, INTERNAL_MESSAGE)
        }
    }
}

fn log(error: &dyn Error) {
    // Limit the log, because every call fails in an outage.
    static LIMIT: LogLimit = LogLimit::new();
    if let Some(left_out) = LIMIT.admit() {
        tracing::error!(error = %error_chain(error), left_out, "a call failed");
    }
}

fn status(code: Code, reason: ErrorReason, message: impl Into<String>) -> Status {
    Status::with_error_details(code, message, details_of(reason))
}

/// Creates a status whose `google.rpc.ErrorInfo` has a pair of metadata.
fn with_metadata(code: Code, reason: ErrorReason, message: &str, (name, value): (&str, String)) -> Status {
    let details =
        ErrorDetails::with_error_info(reason_text(reason), ERROR_DOMAIN, [(name.to_owned(), value)]);
    Status::with_error_details(code, message, details)
}

/// Creates a status with a retry delay.
fn retryable(code: Code, reason: ErrorReason, message: &str) -> Status {
    let mut details = details_of(reason);
    details.set_retry_info(Some(RETRY_DELAY));
    Status::with_error_details(code, message, details)
}

fn details_of(reason: ErrorReason) -> ErrorDetails {
    ErrorDetails::with_error_info(reason_text(reason), ERROR_DOMAIN, [])
}

/// Returns the reason as it is sent: the name in the enum without the common prefix.
fn reason_text(reason: ErrorReason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix("ERROR_REASON_").unwrap_or(name)
}
