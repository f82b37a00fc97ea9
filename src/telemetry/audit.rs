//! Logs calls that were rejected because of their caller.

use super::LogLimit;

/// A rejected call or import row.
#[derive(Debug)]
pub(crate) struct Rejection<'r> {
    /// Name of the method that was called.
    pub(crate) method: &'r str,
    /// Address of the peer. `None` for a Unix socket.
    pub(crate) peer: Option<std::net::IpAddr>,
    /// Name of the caller, if it was authenticated.
    pub(crate) actor: Option<&'r str>,
    /// Names in the client's certificate, if it has one that is not accepted as a credential.
    pub(crate) certificate: Option<&'r str>,
    /// Status of the rejection.
    pub(crate) code: tonic::Code,
    /// Reason for the rejection.
    pub(crate) reason: &'r str,
}

/// Logs a rejected call. Rejections are not stored as events, because callers without a credential could fill
/// the table, and the number of log entries is limited. Authenticated callers have a limit of their own, so
/// that anonymous traffic can't crowd them out.
pub(crate) fn log_rejection(rejection: &Rejection<'_>) {
    static AUTHENTICATED: LogLimit = LogLimit::new();
    static ANONYMOUS: LogLimit = LogLimit::new();
    let limit = if rejection.actor.is_some() { &AUTHENTICATED } else { &ANONYMOUS };
    let Some(left_out) = limit.admit() else { return };
    tracing::warn!(
        target: "keyvouch::audit",
        method = rejection.method,
        peer = rejection.peer.map(tracing::field::display),
        actor = rejection.actor,
        certificate = rejection.certificate,
        code = ?rejection.code,
        reason = rejection.reason,
        left_out,
        "rejected a call because of its caller"
    );
}
