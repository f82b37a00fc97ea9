//! What was refused for who asked, in the log.

use super::LogLimit;

/// Something that was refused.
#[derive(Debug)]
pub(crate) struct Refusal<'r> {
    /// The method that was called.
    pub(crate) method: &'r str,
    /// From where.
    pub(crate) peer: Option<std::net::IpAddr>,
    /// By whom, if that is known.
    pub(crate) actor: Option<&'r str>,
    /// With which status.
    pub(crate) code: tonic::Code,
    /// Why.
    pub(crate) reason: &'r str,
}

/// Says in the log that something was refused. Who has no credential could fill a table with such lines, so they are no part of
/// the events that are stored, and only some of many are written. Those whose caller is known have a limit of their own: nobody
/// drowns them from outside.
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
