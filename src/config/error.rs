//! Errors in the settings.

use super::RenamedSetting;

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
    /// The file is not valid TOML or JSON.
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
    #[error("{name}: {problem}")]
    Type {
        /// The setting, as `section.field`, or a description of the whole configuration.
        name: String,
        /// The expected type.
        problem: String,
    },
    /// The value breaks a rule.
    #[error("{name}: {problem}")]
    Invalid {
        /// The setting, as `section.field`.
        name: String,
        /// The problem, and how to fix it.
        problem: String,
    },
    /// A setting has a value under its old name and another one under its new name.
    #[error("{origin}: `{old}` is the old name of `{new}`, and both are set; remove `{old}`")]
    BothNames {
        /// The source that has the old name.
        origin: String,
        /// The old name.
        old: &'static str,
        /// The new name.
        new: &'static str,
    },
    /// A setting that has its old name in one of the sources can't be used.
    #[error("{error} ({origin} has it under its old name `{old}`)")]
    InOldName {
        /// The source that has the old name.
        origin: String,
        /// The old name.
        old: &'static str,
        /// The error, which has the new name.
        error: Box<ConfigError>,
    },
}

impl ConfigError {
    /// Creates an error of the setting `name`.
    pub fn invalid(name: impl Into<String>, problem: impl ToString) -> Self {
        Self::Invalid { name: name.into(), problem: problem.to_string() }
    }

    /// Returns the current name of the setting to fix, as `section.field`. `None` if the error is not in one setting.
    #[must_use]
    pub fn setting(&self) -> Option<&str> {
        match self {
            Self::Unreadable { .. } | Self::Syntax { .. } => None,
            Self::Unknown { name, .. } | Self::Type { name, .. } | Self::Invalid { name, .. } => Some(name),
            Self::BothNames { new, .. } => Some(new),
            Self::InOldName { error, .. } => error.setting(),
        }
    }

    /// Adds the old name of the setting to fix, if a source has the setting under its old name.
    pub(super) fn with_old_name(self, renamed: &[RenamedSetting]) -> Self {
        let Some(RenamedSetting { old, origin, .. }) =
            renamed.iter().rev().find(|renamed| self.setting() == Some(renamed.new))
        else {
            return self;
        };
        Self::InOldName { origin: origin.clone(), old, error: Box::new(self) }
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
