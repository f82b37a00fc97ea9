//! Logs calls that were rejected because of their caller.

use super::LogLimit;

/// A rejected call or import row.
#[derive(Debug)]
pub(crate) struct Refusal<'r> {
    /// Name of the method that was called.
    pub(crate) method: &'r str,
    /// Address of the peer. `None` for a Unix socket.
    pub(crate) peer: Option<std::net::IpAddr>,
    /// Name of the caller, if it was authenticated.
    pub(crate) actor: Option<&'r str>,
    /// Status of the rejection.
    pub(crate) code: tonic::Code,
    /// Reason for the rejection.
    pub(crate) reason: &'r str,
}

/// Logs a rejected call. Rejections are not stored as events, because callers without a credential could fill
/// the table, and the number of log entries is limited. Authenticated callers have a limit of their own, so
/// that anonymous traffic can't crowd them out.
pub(crate) fn refused(refusal: &Refusal<'_>) {
    static OF_KNOWN: LogLimit = LogLimit::new();
    static OF_UNKNOWN: LogLimit = LogLimit::new();
    let limit = if refusal.actor.is_some() { &OF_KNOWN } else { &OF_UNKNOWN };
    let Some(left_out) = limit.admit() else { return };
    tracing::warn!(
        target: "keyvouch::audit",
        method = refusal.method,
        peer = refusal.peer.map(tracing::field::display),
        actor = refusal.actor,
        code = ?refusal.code,
        reason = refusal.reason,
        left_out,
        "a call was refused"
    );
}
