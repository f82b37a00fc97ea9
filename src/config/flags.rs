//! Rejects secrets on the command line, which every user of the machine can see.

use super::{ConfigError, ENV_PREFIX};

/// The setting whose value is secret, unless all tokens in it are digests.
const TOKENS: &str = "admin.tokens";
/// Settings whose value is a URL that can have a password.
const URLS: [&str; 5] = [
    "store.url",
    "store.sql.replica_url",
    "store.sql.listen_url",
    "cache.redis.url",
    "telemetry.otlp_endpoint",
];

/// Checks that `text`, the value of a flag for the setting `name`, has no secret. The name has to be the current one.
///
/// # Errors
/// It has a secret. The error names other sources, and does not contain the value.
pub(super) fn check(name: &str, text: &str) -> Result<(), ConfigError> {
    let variable = || format!("{ENV_PREFIX}{}", name.to_ascii_uppercase().replace('.', "__"));
    if name == TOKENS && !text.split(',').all(|token| token.contains(":sha256:")) {
        let problem = format!(
            "can't be set on the command line, which all users of this machine can see; set {}, or use admin.tokens_file",
            variable()
        );
        return Err(ConfigError::invalid(name, problem));
    }
    if URLS.contains(&name) && has_password(text) {
        let problem = format!(
            "can't have a password on the command line, which all users of this machine can see; set {}, or write the URL \
             into the file of --config",
            variable()
        );
        return Err(ConfigError::invalid(name, problem));
    }
    Ok(())
}

/// Returns whether `url` has a password: `SCHEME://USER:PASSWORD@HOST`, or a parameter whose name ends in `password`.
fn has_password(url: &str) -> bool {
    let Some((_, rest)) = url.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let user = authority.rsplit_once('@').map(|(user, _)| user);
    let of_user =
        user.and_then(|user| user.split_once(':')).is_some_and(|(_, password)| !password.is_empty());
    let parameters = rest.split_once('?').map_or("", |(_, parameters)| parameters);
    let of_parameter = parameters
        .split(['&', '#'])
        .filter_map(|parameter| parameter.split_once('='))
        .any(|(name, value)| !value.is_empty() && name.to_ascii_lowercase().ends_with("password"));
    of_user || of_parameter
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;
    use toml::{Table, Value};

    use super::*;
    use crate::config::schema::{Kind, settings};
    use crate::config::{Config, Sources};

    fn by_flag(name: &str, text: &str) -> Result<(), ConfigError> {
        Sources { flags: vec![(name.into(), text.into())], ..Sources::default() }.load().map(drop)
    }

    #[test]
    fn passwords_are_found_in_all_forms_of_a_url() {
        for with in [
            "postgres://u:hunter2@h/d",
            "redis://:hunter2@h:1/0",
            "mysql://u:hun%2Fter@[::1]:1/d?ssl-mode=REQUIRED",
            "postgres:///d?host=/run&password=hunter2",
            "redis-sentinel://h?sentinelServiceName=n&sentinelPassword=hunter2",
            "http://u:hunter2@h:4317",
        ] {
            assert!(has_password(with), "{with}");
        }
        for without in [
            "",
            "memory:",
            "sqlite://u:v/kv.db",
            "postgres://u@h:5432/d?options=-c%20a:b@c",
            "postgres://u:@h/d",
            "postgres://[::1]:5432/d",
            "postgres:///d?password=",
            "redis+unix:///run/redis.sock",
        ] {
            assert!(!has_password(without), "{without}");
        }
    }

    #[test]
    fn a_secret_on_the_command_line_is_rejected_with_the_alternative() {
        let digest = format!("ops:sha256:{}", "0".repeat(64));
        assert!(by_flag("admin.tokens", &digest).is_ok(), "a digest is not secret");
        for tokens in ["ops:hunter2-hunter2-hunter2", &format!("{digest},ci:hunter2-hunter2-hunter2")] {
            let error = by_flag("admin.tokens", tokens).unwrap_err().to_string();
            assert!(
                error.contains("KEYVOUCH__ADMIN__TOKENS") && error.contains("admin.tokens_file"),
                "{error}"
            );
            assert!(!error.contains("hunter2"), "{error}");
        }
        // The rule applies to the old name of a setting too.
        for name in ["store.sql.replica_url", "store.replica_url"] {
            let error = by_flag(name, "postgres://u:hunter2@h/d").unwrap_err().to_string();
            assert!(
                error.contains("KEYVOUCH__STORE__SQL__REPLICA_URL") && !error.contains("hunter2"),
                "{error}"
            );
        }
        assert!(by_flag("store.url", "postgres://u@h/d").is_ok());
    }

    /// Settings that are redacted when they are shown are those that this module checks.
    #[test]
    fn every_secret_setting_is_checked() {
        const SECRET: &str = "http://u:hunter2@h/";
        let mut secret = Vec::new();
        for (name, kind) in settings() {
            let value = match kind {
                Kind::Text => Value::String(SECRET.into()),
                Kind::List => Value::Array(vec![Value::String(SECRET.into())]),
                Kind::Boolean | Kind::Integer | Kind::Number => continue,
            };
            let (section, field) = name.rsplit_once('.').unwrap();
            let nested =
                section.rsplit('.').fold(Table::from_iter([(field.to_owned(), value)]), |table, part| {
                    Table::from_iter([(part.to_owned(), Value::Table(table))])
                });
            let Ok(config) = Config::deserialize(nested) else { continue };
            if !toml::to_string(&config).unwrap().contains("hunter2") {
                secret.push(name);
            }
        }
        let mut checked: Vec<_> = URLS.iter().chain([&TOKENS]).map(ToString::to_string).collect();
        checked.sort();
        assert_eq!(secret, checked);
    }
}
