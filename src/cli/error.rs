//! What a failed command says.

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
            // What was being done stands before what the server says.
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
    // If standard error is gone too, the exit status still tells.
    let _ = writeln!(stderr(), "error: {text}");
    ExitCode::FAILURE
}

fn of_status(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    if let Some(info) = status.get_details_error_info() {
        text.push_str(&format!(" [{}]", info.reason));
    }
    if status.code() == Code::Unauthenticated {
        text.push_str("\nGive the file with the admin token: --token-file FILE or KEYVOUCH_TOKEN_FILE");
    }
    text
}

/// What to do where a connection ended before the first answer, and the reason went with it.
fn lost_connection(error: &anyhow::Error) -> Option<&'static str> {
    let status = error.downcast_ref::<Status>()?;
    // Those of a server have details; those of this client's transport have a cause.
    let is_of_transport = status.source().is_some() && status.get_details_error_info().is_none();
    let is_lost =
        matches!(status.code(), Code::Cancelled | Code::Internal | Code::Unknown | Code::Unavailable);
    (is_of_transport && is_lost).then_some(
        "The server ended the connection. If it speaks TLS, --addr begins with https://; if it asks for a client certificate, \
         give one that it knows: --cert-file and --cert-key-file",
    )
}

/// What TLS says, where `cause` is that; errors of the system hold it where their sources don't show it.
fn tls_error<'e>(cause: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    let within = || cause.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref();
    cause.downcast_ref().or_else(within)
}

/// What to do about it.
fn advice(error: &rustls::Error) -> Option<&'static str> {
    use AlertDescription as Alert;
    match error {
        rustls::Error::AlertReceived(Alert::CertificateRequired) => {
            Some("The server asks for a client certificate: give --cert-file and --cert-key-file")
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
            "The server refused the client certificate: look at --cert-file, its dates and who signed it",
        ),
        rustls::Error::InvalidCertificate(_) => Some(
            "The server's certificate was not trusted: give the file of its root, --ca-file, and --server-name if it is for another name",
        ),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            Some("The server does not speak TLS: give its address with http:// or with none")
        }
        _ => None,
    }
}
