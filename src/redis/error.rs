//! The error of unusable settings, and errors of servers that mean unusable settings.

use std::error::Error;

/// A URL or a file is unusable for connections to Redis. The text contains no part of the URL except the name of a
/// parameter.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct InvalidSettings(Box<dyn Error + Send + Sync>);

impl InvalidSettings {
    pub(super) fn new(problem: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(problem.into())
    }
}

pub(super) type Result<T> = std::result::Result<T, InvalidSettings>;

/// The problem of a URL with a database number that is too large for the server.
pub(crate) const NO_DATABASE: &str = "the server does not have the database number in the URL";

/// Returns the command, in upper case, that the user may not run according to an error of the server. `None` for other
/// errors, and if a name or a channel is forbidden.
pub(crate) fn forbidden_command(error: &fred::error::Error) -> Option<String> {
    let details = error.details();
    let (_, quoted) = details.contains("NOPERM").then(|| details.split_once('\''))??;
    // Redis 7 names the subcommand, too: `cluster|slots`.
    let command = quoted.split(['\'', '|']).next()?;
    Some(command.to_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use fred::error::{Error, ErrorKind};

    use super::*;

    #[test]
    fn forbidden_commands_are_named() {
        for (details, command) in [
            (
                "NOPERM this user has no permissions to run the 'select' command or its subcommand",
                Some("SELECT"),
            ),
            ("NOPERM User kv has no permissions to run the 'cluster|slots' command", Some("CLUSTER")),
            ("NOPERM No permissions to access a key", None),
            ("ERR unknown command 'SELECT', with args beginning with: '0' ", None),
        ] {
            let error = Error::new(ErrorKind::Unknown, details);
            assert_eq!(forbidden_command(&error).as_deref(), command, "{details}");
        }
    }
}
