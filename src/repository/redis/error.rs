//! Maps errors of fred and Redis to the kinds that callers act on.

use fred::error::{Error, ErrorKind as FredKind};

use crate::redis::{
    ClusterProblem, IS_SENTINEL, InvalidSettings, NO_CLUSTER, NO_DATABASE, forbidden_command,
};
use crate::repository::{ErrorKind, RepositoryError};

impl From<InvalidSettings> for RepositoryError {
    fn from(error: InvalidSettings) -> Self {
        Self::new(ErrorKind::Unusable, error)
    }
}

impl From<ClusterProblem> for RepositoryError {
    fn from(problem: ClusterProblem) -> Self {
        let kind = match problem {
            ClusterProblem::Forbidden(_) => ErrorKind::Unusable,
            // The node may come up later.
            ClusterProblem::Unreachable { .. } => ErrorKind::Unavailable,
        };
        Self::new(kind, problem)
    }
}

/// Prefixes of errors of an unavailable server or cluster after which the command certainly was not run, or a
/// script ended before its first change.
const UNAVAILABLE_NOT_RUN: [&str; 12] = [
    // The first two are fred's own errors if it has no connection, or if the cluster reports that it is not
    // up.
    "Failed to route command",
    "Invalid or missing cluster state",
    "ERR max number of clients reached",
    "READONLY",
    "LOADING",
    "CLUSTERDOWN",
    "MASTERDOWN",
    "OOM",
    "MISCONF",
    "NOREPLICAS",
    "NOAUTH",
    "NOPERM",
];

/// Prefixes of other errors of a server or cluster that is unavailable at the moment.
const UNAVAILABLE: [&str; 5] = [
    "Too many failed write attempts",
    "ERR WAIT cannot be used with replica instances",
    "UNBLOCKED",
    "TRYAGAIN",
    "BUSY",
];

/// Classifies an error of the first connection. Some of these errors can be fixed in the URL, or by a permission.
pub(super) fn from_start(error: Error) -> RepositoryError {
    if let Some(command) = forbidden_command(&error) {
        return ClusterProblem::Forbidden(command).into();
    }
    let problem = match error.details() {
        details if details.contains("cluster support disabled") => NO_CLUSTER,
        details if details.contains("DB index is out of range") => NO_DATABASE,
        // A Sentinel has no databases.
        details
            if details.starts_with("ERR unknown command")
                && details.to_ascii_uppercase().contains("'SELECT'") =>
        {
            IS_SENTINEL
        }
        _ => return from_fred(error),
    };
    RepositoryError::new(ErrorKind::Unusable, problem)
}

/// Classifies `error`, which becomes the source. Marks changes that were certainly not made as unapplied.
pub(super) fn from_fred(error: Error) -> RepositoryError {
    let is_unapplied = was_not_run(&error) || says_any(&error, &UNAVAILABLE_NOT_RUN);
    let error = RepositoryError::new(kind_of(&error), error);
    if is_unapplied { error.unapplied() } else { error }
}

/// Returns whether the server rejects writes because it is a replica.
pub(super) fn is_read_only(error: &Error) -> bool {
    says(error, "READONLY")
}

/// Returns whether the command certainly was not run, because it was not sent, or its slot is moving to
/// another node.
pub(super) fn was_not_run(error: &Error) -> bool {
    // fred's errors for a command without a connection, and for one that is not redirected.
    let was_not_sent =
        error.kind() == &FredKind::Canceled && error.details() == "Connection closed unexpectedly.";
    was_not_sent || error.details() == "Too many redirections." || error.details().starts_with("TRYAGAIN")
}

/// Returns whether the error has the prefix `code`. Before Redis 7, the error of a command within a script is
/// embedded in another text.
fn says(error: &Error, code: &str) -> bool {
    let details = error.details();
    details.starts_with(code) || details.contains(&format!("-{code}"))
}

/// Returns whether the error has one of the prefixes `codes`.
fn says_any(error: &Error, codes: &[&str]) -> bool {
    codes.iter().any(|code| says(error, code))
}

fn kind_of(error: &Error) -> ErrorKind {
    if says_any(error, &UNAVAILABLE_NOT_RUN) || says_any(error, &UNAVAILABLE) {
        return ErrorKind::Unavailable;
    }
    match error.kind() {
        FredKind::Timeout => ErrorKind::Timeout,
        // The URL does not match the server.
        FredKind::Config => ErrorKind::Unusable,
        FredKind::IO
        | FredKind::Auth
        | FredKind::Routing
        | FredKind::Canceled
        | FredKind::Cluster
        | FredKind::Sentinel
        | FredKind::Backpressure
        | FredKind::Tls => ErrorKind::Unavailable,
        FredKind::Parse | FredKind::NotFound => ErrorKind::Corrupt,
        _ => ErrorKind::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_become_kinds() {
        for (kind, details, expected) in [
            (FredKind::Timeout, "", ErrorKind::Timeout),
            (FredKind::IO, "Connection refused", ErrorKind::Unavailable),
            (FredKind::Canceled, "", ErrorKind::Unavailable),
            (FredKind::Auth, "WRONGPASS", ErrorKind::Unavailable),
            (FredKind::Unknown, "Failed to route command.", ErrorKind::Unavailable),
            (FredKind::Unknown, "Too many failed write attempts.", ErrorKind::Unavailable),
            (
                FredKind::Unknown,
                "ERR Error running script (call to f_1): @user_script:4: @user_script: 4: -READONLY You can't write",
                ErrorKind::Unavailable,
            ),
            (
                FredKind::Unknown,
                "READONLY You can't write against a read only replica.",
                ErrorKind::Unavailable,
            ),
            (
                FredKind::Unknown,
                "OOM command not allowed when used memory > 'maxmemory'.",
                ErrorKind::Unavailable,
            ),
            (FredKind::Protocol, "Invalid or missing cluster state.", ErrorKind::Unavailable),
            (FredKind::Unknown, "LOADING Redis is loading the dataset in memory", ErrorKind::Unavailable),
            (FredKind::Cluster, "CLUSTERDOWN The cluster is down", ErrorKind::Unavailable),
            (FredKind::InvalidArgument, "WRONGTYPE Operation against a key", ErrorKind::Internal),
            (FredKind::Parse, "Cannot convert", ErrorKind::Corrupt),
        ] {
            assert_eq!(kind_of(&Error::new(kind, details.to_owned())), expected, "{details}");
        }
    }
}
