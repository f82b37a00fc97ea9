//! What a failed command says.

use std::io::{Write as _, stderr};
use std::process::ExitCode;

use tonic::Status;
use tonic_types::StatusExt as _;

/// Prints `error` with its causes and returns the exit status.
pub(super) fn report(error: &anyhow::Error) -> ExitCode {
    let text = match error.downcast_ref::<Status>() {
        Some(status) => {
            // What was being done stands before what the server says.
            let contexts = error.chain().take_while(|cause| !cause.is::<Status>());
            let mut parts: Vec<_> = contexts.map(ToString::to_string).collect();
            parts.push(of_status(status));
            parts.join(": ")
        }
        None => format!("{error:#}"),
    };
    // If standard error is gone too, the exit status still tells.
    let _ = writeln!(stderr(), "error: {text}");
    ExitCode::FAILURE
}

fn of_status(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    if let Some(info) = status.get_details_error_info() {
        text.push_str(&format!(" [{}]", info.reason));
    }
    if status.code() == tonic::Code::Unauthenticated {
        text.push_str("\nGive the file with the admin token: --token-file FILE or KEYVOUCH_TOKEN_FILE");
    }
    text
}
