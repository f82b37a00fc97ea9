//! Errors in the settings.

/// A setting that can't be used. The message names the setting and says how to fix it. It never contains a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read the configuration file {path}")]
    Unreadable {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not valid TOML.
    #[error("{path}, line {line}: {problem}")]
    Syntax {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// The parser's message, without the text of the line.
        problem: String,
    },
    /// The setting does not exist.
    #[error("{origin}: unknown setting `{name}`{}", suggestion(.nearest.as_deref()))]
    Unknown {
        /// The source that has it.
        origin: String,
        /// The unknown name.
        name: String,
        /// The most similar known name, if one is similar enough.
        nearest: Option<String>,
    },
    /// The value has the wrong type.
    #[error("{0}")]
    Type(String),
    /// The value breaks a rule.
    #[error("{name}: {problem}")]
    Invalid {
        /// The setting, as `section.field`.
        name: String,
        /// The problem, and how to fix it.
        problem: String,
    },
}

impl ConfigError {
    /// Creates an error of the setting `name`.
    pub fn invalid(name: impl Into<String>, problem: impl ToString) -> Self {
        Self::Invalid { name: name.into(), problem: problem.to_string() }
    }
}

impl From<crate::domain::InvalidField> for ConfigError {
    fn from(error: crate::domain::InvalidField) -> Self {
        Self::invalid(error.field, error.problem)
    }
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}
