//! The one table from errors to statuses.
//!
//! Clients get fixed sentences, a machine-readable reason and the field that is wrong; what a driver says stays here,
//! in the log, once.

use std::error::Error;
use std::time::Duration;

use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::field_limit::MAX_FIELDS;
use super::pb::ErrorReason;
use crate::domain::{EntropyError, InvalidField, RotationRefused};
use crate::repository::{ErrorKind, RepositoryError};
use crate::service::{Precondition, ServiceError};
use crate::telemetry::{LogLimit, error_chain};

/// The domain of every `google.rpc.ErrorInfo` that Keyvouch sends.
pub const ERROR_DOMAIN: &str = "keyvouch";

/// After which time a caller may try again when the store is unavailable.
const RETRY_DELAY: Duration = Duration::from_secs(1);

pub(super) fn from_service(error: ServiceError) -> Status {
    match error {
        ServiceError::InvalidField(error) => invalid_field(error),
        ServiceError::Precondition(error) => from_precondition(error),
        ServiceError::ScopeNotGrantable(_) => {
            status(Code::PermissionDenied, ErrorReason::ScopeNotGrantable, error.to_string())
        }
        ServiceError::AlreadyApplied(id) => {
            let message = format!(
                "an earlier request with this request_id made the key {id}; its secret can't be shown again: rotate the key"
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

/// Of a call that changes keys: after a failure of the store it is not known whether the change was made. `repeat` says what
/// happens when the call is repeated.
pub(super) fn from_change(error: ServiceError, repeat: Repeat) -> Status {
    let ServiceError::Repository(failure) = &error else { return from_service(error) };
    if failure.is_unapplied() {
        return from_service(error);
    }
    let (code, reason, problem) = match failure.kind() {
        ErrorKind::Unavailable => {
            (Code::Unavailable, ErrorReason::StoreUnavailable, "the store is unavailable")
        }
        ErrorKind::Timeout => {
            (Code::DeadlineExceeded, ErrorReason::StoreTimeout, "the store did not answer in time")
        }
        ErrorKind::Internal => (Code::Internal, ErrorReason::Internal, INTERNAL_MESSAGE),
        _ => return from_service(error),
    };
    log(failure);
    let message = format!("{problem}; the change may still have been applied: {}", repeat.advice());
    if code == Code::Unavailable && repeat.is_harmless() {
        again_later(code, reason, &message)
    } else {
        status(code, reason, message)
    }
}

/// What happens when a call that may have been applied is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// The same as if it had been made once.
    Safe,
    /// It answers `NOT_FOUND`.
    NotFound,
    /// It answers `ALREADY_EXISTS` for each key that was stored.
    AlreadyExists,
    /// It answers `ABORTED`, since the key has another revision than the call expects.
    Aborted,
    /// What others changed meanwhile is overwritten.
    Overwrites,
    /// Another key is made.
    MakesAnother,
}

impl Repeat {
    /// Of a call that makes a key, with or without a `request_id`.
    pub(super) fn of(request_id: &str) -> Self {
        if request_id.is_empty() { Self::MakesAnother } else { Self::Safe }
    }

    /// Whether a client may repeat the call without looking.
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

pub(super) fn invalid_field(error: InvalidField) -> Status {
    let message = error.to_string();
    let mut details = details_of(ErrorReason::InvalidField);
    details.add_bad_request_violation(error.field, error.problem);
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// The status as a message, for a part of an answer.
pub(super) fn into_message(status: &Status) -> tonic_types::pb::Status {
    let whole = tonic_types::pb::Status::decode(status.details()).ok().filter(|it| it.code != 0);
    whole.unwrap_or_else(|| tonic_types::pb::Status {
        code: status.code().into(),
        message: status.message().to_owned(),
        details: Vec::new(),
    })
}

/// A refused credential: `what` says what the call needs.
pub(super) fn unauthenticated(reason: ErrorReason, what: &'static str) -> Status {
    status(Code::Unauthenticated, reason, what)
}

/// A refusal of who called.
pub(super) fn permission_denied(reason: ErrorReason, what: String) -> Status {
    status(Code::PermissionDenied, reason, what)
}

/// The call took longer than it may.
pub(crate) fn deadline_exceeded() -> Status {
    let message = "deadline exceeded; if the call changes keys, the change may still have been applied";
    status(Code::DeadlineExceeded, ErrorReason::DeadlineExceeded, message)
}

/// A stream whose connection is told to end.
pub(crate) fn connection_ends() -> Status {
    let message = "the server is closing this connection; reconnect and resume (keys of an import without an answer may still have been stored)";
    again_later(Code::Unavailable, ErrorReason::ConnectionEnds, message)
}

/// A message above the limit.
pub(crate) fn message_too_large() -> Status {
    let message = "the request is larger than the server takes";
    status(Code::ResourceExhausted, ErrorReason::MessageTooLarge, message)
}

/// A request with more fields than the largest valid one.
pub(super) fn too_many_fields() -> Status {
    let message = format!("the request has more than {MAX_FIELDS} fields");
    status(Code::ResourceExhausted, ErrorReason::MessageTooLarge, message)
}

/// A call with more header fields than clients and proxies send.
pub(crate) fn too_many_header_fields() -> Status {
    let message = "the call has more than 64 header fields";
    status(Code::ResourceExhausted, ErrorReason::MessageTooLarge, message)
}

/// The server has more to do than it should take on.
pub(crate) fn overloaded() -> Status {
    let message = "too much is asked at this moment: try again later";
    again_later(Code::ResourceExhausted, ErrorReason::Overloaded, message)
}

/// A fault of the server, which `cause` describes in the log alone.
pub(super) fn internal(cause: &str) -> Status {
    tracing::error!(cause, "a call failed");
    status(Code::Internal, ErrorReason::Internal, INTERNAL_MESSAGE)
}

/// What a call answers whose handler panicked; the panic is in the log already.
pub(crate) fn panicked() -> Status {
    status(Code::Internal, ErrorReason::Internal, INTERNAL_MESSAGE)
}

/// A status that tonic made before any handler saw the call, in our words; `None` for one that is ours, or that tells
/// nothing of the request.
pub(crate) fn from_transport(transport: &Status) -> Option<Status> {
    if !transport.details().is_empty() {
        return None;
    }
    let (code, reason, message) = match transport.code() {
        Code::OutOfRange => return Some(message_too_large()),
        // The decoder's word for what it can't read; our own INTERNAL has details.
        Code::Internal => {
            (Code::InvalidArgument, ErrorReason::MessageMalformed, "the request is no message of this method")
        }
        Code::Unimplemented => (Code::Unimplemented, ErrorReason::MethodUnknown, "there is no such method"),
        _ => return None,
    };
    Some(status(code, reason, message))
}

const INTERNAL_MESSAGE: &str =
    "internal error: the server's log has the cause under this call's x-request-id";

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
            "a key with this hash was revoked and deleted: set allow_revoked_hash to make it valid again",
        ),
        ErrorKind::NotFound => {
            status(Code::NotFound, ErrorReason::KeyNotFound, "there is no key with this id")
        }
        ErrorKind::Conflict => status(
            Code::Aborted,
            ErrorReason::RevisionMismatch,
            "the key was changed meanwhile: read it and try again",
        ),
        ErrorKind::Refused => status(
            Code::FailedPrecondition,
            ErrorReason::ChangeRefused,
            "the change would alter what is final",
        ),
        ErrorKind::NotOffered => {
            status(Code::Unimplemented, ErrorReason::NotOffered, "the storage backend does not offer this")
        }
        ErrorKind::PositionLost => status(
            Code::OutOfRange,
            ErrorReason::FeedPositionLost,
            "the position is too old: begin anew without one",
        ),
        ErrorKind::Overloaded => overloaded(),
        ErrorKind::Unavailable => {
            log(error);
            let message = "the store is unavailable: try again later";
            again_later(Code::Unavailable, ErrorReason::StoreUnavailable, message)
        }
        ErrorKind::Timeout => {
            log(error);
            status(Code::DeadlineExceeded, ErrorReason::StoreTimeout, "the store did not answer in time")
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
    // In an outage every call fails.
    static LIMIT: LogLimit = LogLimit::new();
    if let Some(left_out) = LIMIT.admit() {
        tracing::error!(error = %error_chain(error), left_out, "a call failed");
    }
}

fn status(code: Code, reason: ErrorReason, message: impl Into<String>) -> Status {
    Status::with_error_details(code, message, details_of(reason))
}

/// A status whose `google.rpc.ErrorInfo` has a pair of metadata.
fn with_metadata(code: Code, reason: ErrorReason, message: &str, (name, value): (&str, String)) -> Status {
    let details =
        ErrorDetails::with_error_info(reason_text(reason), ERROR_DOMAIN, [(name.to_owned(), value)]);
    Status::with_error_details(code, message, details)
}

/// A status that says when to try again.
fn again_later(code: Code, reason: ErrorReason, message: &str) -> Status {
    let mut details = details_of(reason);
    details.set_retry_info(Some(RETRY_DELAY));
    Status::with_error_details(code, message, details)
}

fn details_of(reason: ErrorReason) -> ErrorDetails {
    ErrorDetails::with_error_info(reason_text(reason), ERROR_DOMAIN, [])
}

/// The reason as it travels: the name in the enum without what all of them begin with.
fn reason_text(reason: ErrorReason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix("ERROR_REASON_").unwrap_or(name)
}
