//! What is wrong with the settings.

/// A setting that can't be used. The text names the setting and the fix, and never holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read the configuration file {path}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("{path}, line {line}: {problem}")]
    Syntax {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// What the parser says, without the text of the line.
        problem: String,
    },
    /// There is no such setting.
    #[error("{origin}: there is no setting `{name}`{}", suggestion(.nearest.as_deref()))]
    Unknown {
        /// Where it was given.
        origin: String,
        /// The name that was given.
        name: String,
        /// The known name that looks most like it.
        nearest: Option<String>,
    },
    /// The value is of the wrong kind.
    #[error("{0}")]
    Type(String),
    /// The value breaks a rule.
    #[error("{name}: {problem}")]
    Invalid {
        /// The setting, as `section.field`.
        name: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}

impl ConfigError {
    /// An error of the setting `name`.
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
