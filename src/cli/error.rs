//! Error messages of failed commands.

use std::error::Error;
use std::io::{self, Write as _, stderr};
use std::process::ExitCode;

use rustls::{AlertDescription, InvalidMessage};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Prints `error` with its causes and returns the exit status.
pub(super) fn report(error: &anyhow::Error) -> ExitCode {
    let mut text = match error.downcast_ref::<Status>() {
        Some(status) => {
            // Print the operation before the server's message.
            let contexts = error.chain().take_while(|cause| !cause.is::<Status>());
            let mut parts: Vec<_> = contexts.map(ToString::to_string).collect();
            parts.push(of_status(status));
            parts.join(": ")
        }
        None => format!("{error:#}"),
    };
    if let Some(advice) =
        error.chain().find_map(tls_error).and_then(advice).or_else(|| lost_connection(error))
    {
        text.push('\n');
        text.push_str(advice);
    }
    // If standard error is closed, the exit status still shows the failure.
    let _ = writeln!(stderr(), "error: {text}");
    ExitCode::FAILURE
}

fn of_status(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    if let Some(info) = status.get_details_error_info() {
        text.push_str(&format!(" [{}]", info.reason));
    }
    if status.code() == Code::Unauthenticated {
        text.push_str("\nSet --token-file FILE (or KEYVOUCH_TOKEN_FILE) to a file with an admin token or a key with a keyvouch.* scope");
    }
    text
}

/// Returns advice for a connection that ended before the first response, so that the reason is unknown.
fn lost_connection(error: &anyhow::Error) -> Option<&'static str> {
    let status = error.downcast_ref::<Status>()?;
    // Statuses of a server have details. Those of this client's transport have a source.
    let is_of_transport = status.source().is_some() && status.get_details_error_info().is_none();
    let is_lost =
        matches!(status.code(), Code::Cancelled | Code::Internal | Code::Unknown | Code::Unavailable);
    (is_of_transport && is_lost).then_some(
        "The server closed the connection. If it uses TLS, use --addr https://HOST:PORT. If it needs a client certificate, set \
         --cert-file and --cert-key-file to one that it accepts",
    )
}

/// Returns the rustls error in `cause`, if it is one or an I/O error that wraps one. I/O errors don't return the
/// wrapped error as their source.
fn tls_error<'e>(cause: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    let within = || cause.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref();
    cause.downcast_ref().or_else(within)
}

/// Returns what to do about `error`, if it is known.
fn advice(error: &rustls::Error) -> Option<&'static str> {
    use AlertDescription as Alert;
    match error {
        rustls::Error::AlertReceived(Alert::CertificateRequired) => {
            Some("The server needs a client certificate; set --cert-file and --cert-key-file")
        }
        rustls::Error::AlertReceived(
            Alert::BadCertificate
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::DecryptError
            | Alert::UnknownCA
            | Alert::UnsupportedCertificate,
        ) => Some(
            "The server rejected the client certificate; check the validity period and the issuer of --cert-file",
        ),
        rustls::Error::InvalidCertificate(_) => Some(
            "The server's certificate could not be verified; set --ca-file to its root certificate, and --server-name if it has another name",
        ),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            Some("The server does not use TLS; use --addr http://HOST:PORT")
        }
        _ => None,
    }
}
