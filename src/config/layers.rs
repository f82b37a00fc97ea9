//! Merges the sources of settings: file, environment, flags.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use toml::{Table, Value};

use super::renamed::{self, OldNames, insert};
use super::schema::{Kind, nearest, settings};
use super::{Config, ConfigError, RenamedSetting, Settings, flags, json};

/// Prefix of the environment variables of all settings: `KEYVOUCH__SECTION__FIELD`.
pub const ENV_PREFIX: &str = "KEYVOUCH__";

/// Sources of settings, in increasing precedence.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// File of settings: JSON if its name ends in `.json`, otherwise TOML. `None` for no file.
    pub file: Option<PathBuf>,
    /// Environment variables. Those without [`ENV_PREFIX`] are ignored.
    pub environment: Vec<(String, String)>,
    /// Flags: `section.field` and value.
    pub flags: Vec<(String, String)>,
}

impl Sources {
    /// Returns the merged and parsed settings. Files that the settings name are not read.
    ///
    /// # Errors
    /// The file can't be read or parsed, a setting is unknown or has two names, a value has the wrong type or breaks
    /// a rule, or a flag has a secret.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        let known = settings();
        let mut old_names = OldNames::default();
        let mut table = match &self.file {
            None => Table::new(),
            Some(path) => read_file(path, &known, &mut old_names)?,
        };
        for (variable, text) in &self.environment {
            if let Some(name) = variable.strip_prefix(ENV_PREFIX) {
                let name = name.to_ascii_lowercase().replace("__", ".");
                let origin = format!("the variable {variable}");
                set(&mut table, &name, text, &origin, &known, &mut old_names)?;
            }
        }
        for (name, text) in &self.flags {
            flags::check(current_name(name), text)?;
            set(&mut table, name, text, "the command line", &known, &mut old_names)?;
        }
        let renamed = old_names.apply(&mut table)?;
        let config = Config::deserialize(table).map_err(|error| wrong_type(&error));
        let parsed = config.and_then(|config| Ok((config.parse()?, config)));
        let (settings, config) = parsed.map_err(|error| error.with_old_name(&renamed))?;
        Ok(Loaded { config, settings, renamed })
    }
}

/// The settings of all sources.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The merged settings, as written.
    pub config: Config,
    /// The merged settings, parsed.
    pub settings: Settings,
    /// Settings that a source has under their old names. Log each of them as a warning.
    pub renamed: Vec<RenamedSetting>,
}

fn read_file(
    path: &Path,
    settings: &BTreeMap<String, Kind>,
    old_names: &mut OldNames,
) -> Result<Table, ConfigError> {
    let origin = path.display().to_string();
    let text = fs::read_to_string(path)
        .map_err(|source| ConfigError::Unreadable { path: origin.clone(), source })?;
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    let table = if is_json { parse_json(&text, &origin)? } else { parse_toml(&text, &origin)? };
    for (section, fields) in &table {
        let Some(fields) = fields.as_table() else {
            return Err(unknown(section, &origin, settings));
        };
        check_section(section, fields, &origin, settings, old_names)?;
    }
    Ok(table)
}

fn parse_toml(text: &str, origin: &str) -> Result<Table, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        // The parser's `Display` shows the line, which can hold a password; its message does not.
        ConfigError::Syntax { path: origin.to_owned(), line, problem: error.message().to_owned() }
    })
}

fn parse_json(text: &str, origin: &str) -> Result<Table, ConfigError> {
    json::parse(text).map_err(|error| {
        let problem = error.to_string();
        let problem = problem.split(" at line ").next().unwrap_or_default().to_owned();
        ConfigError::Syntax { path: origin.to_owned(), line: error.line().max(1), problem }
    })
}

fn check_section(
    section: &str,
    fields: &Table,
    origin: &str,
    settings: &BTreeMap<String, Kind>,
    old_names: &mut OldNames,
) -> Result<(), ConfigError> {
    let is_section = |name: &str| settings.keys().any(|known| known.starts_with(&format!("{name}.")));
    if fields.is_empty() && !is_section(section) {
        return Err(unknown(section, origin, settings));
    }
    for (field, value) in fields {
        let name = format!("{section}.{field}");
        match value.as_table() {
            Some(fields) if is_section(&name) => check_section(&name, fields, origin, settings, old_names)?,
            _ => {
                kind_of(&name, origin, settings)?;
                old_names.note(&name, origin);
            }
        }
    }
    Ok(())
}

fn set(
    table: &mut Table,
    name: &str,
    text: &str,
    origin: &str,
    settings: &BTreeMap<String, Kind>,
    old_names: &mut OldNames,
) -> Result<(), ConfigError> {
    let kind = kind_of(name, origin, settings)?;
    old_names.note(name, origin);
    insert(table, name, value(name, text, kind)?)
}

/// Returns the type of the setting `name`, which can be an old name.
fn kind_of(name: &str, origin: &str, settings: &BTreeMap<String, Kind>) -> Result<Kind, ConfigError> {
    settings.get(current_name(name)).copied().ok_or_else(|| unknown(name, origin, settings))
}

/// Returns the current name of the setting `name`, which can be an old name.
fn current_name(name: &str) -> &str {
    renamed::find(name).map_or(name, |renaming| renaming.new)
}

fn unknown(name: &str, origin: &str, settings: &BTreeMap<String, Kind>) -> ConfigError {
    ConfigError::Unknown { origin: origin.into(), name: name.into(), nearest: nearest(name, settings) }
}

/// Parses the value in `text`. A list is written `a,b`, or as in TOML: `["a", "b"]`.
fn value(name: &str, text: &str, kind: Kind) -> Result<Value, ConfigError> {
    match kind {
        Kind::Text => Ok(Value::String(text.to_owned())),
        Kind::Boolean => match text {
            "true" => Ok(Value::Boolean(true)),
            "false" => Ok(Value::Boolean(false)),
            _ => Err(ConfigError::invalid(name, "must be true or false")),
        },
        Kind::Integer => {
            text.parse().map(Value::Integer).map_err(|_| ConfigError::invalid(name, "must be a whole number"))
        }
        Kind::Number => {
            text.parse().map(Value::Float).map_err(|_| ConfigError::invalid(name, "must be a number"))
        }
        Kind::List if text.trim_start().starts_with('[') && !begins_with_ipv6_address(text) => {
            let parsed: Result<Table, _> = toml::from_str(&format!("list = {text}"));
            let list = parsed.ok().and_then(|mut table| table.remove("list"));
            list.ok_or_else(|| ConfigError::invalid(name, "expected a list: a,b or [\"a\", \"b\"]"))
        }
        Kind::List => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Ok(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
        }
    }
}

/// Returns whether the first item of a list is an address such as `[::1]:50051`.
fn begins_with_ipv6_address(list: &str) -> bool {
    let literal = list.trim_start().strip_prefix('[').and_then(|rest| rest.split_once("]:"));
    // An address can have a zone: fe80::1%eth0.
    let address = literal.map(|(literal, _)| literal.split('%').next().unwrap_or_default());
    address.is_some_and(|address| address.parse::<Ipv6Addr>().is_ok())
}

/// Returns the error for a value of the wrong type: the setting's name and the expected type, without the value.
fn wrong_type(error: &toml::de::Error) -> ConfigError {
    let text = error.to_string();
    let mut lines = text.lines();
    let problem = lines.next().unwrap_or_default();
    let name = lines.find_map(|line| line.trim().strip_prefix("in `")).map(|name| name.trim_end_matches('`'));
    let problem = match problem.split_once(", expected ") {
        Some((_, expected)) => format!("wrong type of value; expected {expected}"),
        None => problem.to_owned(),
    };
    ConfigError::Type { name: name.unwrap_or("the configuration").to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::HumanDuration;

    fn load(file: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, String> {
        load_named("keyvouch.toml", file, environment, flags)
    }

    fn load_named(
        name: &str,
        file: &str,
        environment: &[(&str, &str)],
        flags: &[(&str, &str)],
    ) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, file).unwrap();
        let own = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|&(name, text)| (name.into(), text.into())).collect()
        };
        let sources = Sources { file: Some(path), environment: own(environment), flags: own(flags) };
        sources.load().map(|loaded| loaded.config).map_err(|error| error.to_string())
    }

    #[test]
    fn without_any_source_the_defaults_work() {
        let config = Sources::default().load().unwrap().config;
        assert_eq!(config.server.listen, ["127.0.0.1:50051"]);
        assert_eq!(config.store.url.expose(), "sqlite://keyvouch.db");
        assert_eq!(config.keys.prefix, ["kv_"]);
    }

    #[test]
    fn flags_go_over_the_environment_and_that_over_the_file() {
        let file = "[store]\nurl = \"memory:\"\ntimeout = \"1s\"\n[keys]\nprefix = [\"a_\"]\n";
        let environment = [("KEYVOUCH__STORE__TIMEOUT", "2s"), ("KEYVOUCH__KEYS__PREFIX", "b_, c_")];
        let config = load(file, &environment, &[("store.timeout", "3s")]).unwrap();
        assert_eq!(config.store.url.expose(), "memory:");
        assert_eq!(config.store.timeout, HumanDuration(std::time::Duration::from_secs(3)));
        assert_eq!(config.keys.prefix, ["b_", "c_"]);
    }

    #[test]
    fn a_file_can_be_json() {
        let json = |file: &str| load_named("keyvouch.json", file, &[], &[("store.timeout", "3s")]);
        let config =
            json(r#"{"store": {"url": "memory:", "timeout": "1s"}, "cache": {"redis": {"prefix": "x:"}}}"#)
                .unwrap();
        assert_eq!((config.store.url.expose(), config.cache.redis.prefix.as_str()), ("memory:", "x:"));
        assert_eq!(config.store.timeout, HumanDuration(std::time::Duration::from_secs(3)));
        assert!(json(r#"{"store": {"urls": "memory:"}}"#).unwrap_err().contains("`store.urls`"));
        let error = json("{\"store\": {\n\"url\" \"hunter2\"}}").unwrap_err();
        assert!(error.contains("keyvouch.json, line 2") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_setting_can_be_in_a_section_of_a_section() {
        let file = "[cache]\nttl = \"7s\"\n[cache.redis]\nurl = \"redis://h\"\n";
        let environment = [("KEYVOUCH__CACHE__LOCAL__ENABLED", "false")];
        let config = load(file, &environment, &[("cache.redis.prefix", "x:")]).unwrap();
        assert_eq!((config.cache.local.enabled, config.cache.redis.prefix.as_str()), (false, "x:"));
        assert_eq!(config.cache.redis.url.expose(), "redis://h");
    }

    #[test]
    fn one_address_or_several_can_be_listened_on() {
        let one = load("[server]\nlisten = \"127.0.0.1:1\"\n", &[], &[]).unwrap();
        assert_eq!(one.server.listen, ["127.0.0.1:1"]);
        let environment = [("KEYVOUCH__SERVER__LISTEN", "127.0.0.1:1,unix:/run/kv.sock")];
        assert_eq!(load("", &environment, &[]).unwrap().server.listen.len(), 2);
    }

    #[test]
    fn a_list_can_begin_with_an_ipv6_address() {
        let cases: [(&str, &[&str]); 5] = [
            ("[::1]:50051", &["[::1]:50051"]),
            (" [::1]:1, 127.0.0.1:1", &["[::1]:1", "127.0.0.1:1"]),
            ("127.0.0.1:1,[::1]:1", &["127.0.0.1:1", "[::1]:1"]),
            ("[\"[::1]:1\", \"127.0.0.1:1\"]", &["[::1]:1", "127.0.0.1:1"]),
            ("[]", &[]),
        ];
        for (text, expected) in cases {
            let variable = load("", &[("KEYVOUCH__SERVER__ADMIN_LISTEN", text)], &[]).unwrap();
            let flag = load("", &[], &[("server.admin_listen", text)]).unwrap();
            assert_eq!(variable.server.admin_listen, expected, "{text}");
            assert_eq!(flag.server.admin_listen, expected, "{text}");
        }
        assert!(load("", &[], &[("server.listen", "[::1:50051")]).unwrap_err().contains("expected a list"));
    }

    #[test]
    fn what_is_unknown_is_refused_with_the_nearest_name() {
        let cases = [
            load("[server]\nlisen = \"127.0.0.1:1\"\n", &[], &[]),
            load("", &[("KEYVOUCH__SERVER__LISEN", "127.0.0.1:1")], &[]),
            load("", &[], &[("server.lisen", "127.0.0.1:1")]),
        ];
        for outcome in cases {
            let error = outcome.unwrap_err();
            assert!(
                error.contains("unknown setting `server.lisen`") && error.contains("`server.listen`"),
                "{error}"
            );
        }
        assert!(load("[sever]\n", &[], &[]).is_err());
        assert!(load("[cache.remote]\n", &[], &[]).is_err());
        assert!(load("[cache]\nlocal = 1\n", &[], &[]).is_err());
        let error = load("[cache.local]\nenable = true\n", &[], &[]).unwrap_err();
        assert!(error.contains("`cache.local.enabled`"), "{error}");
        assert!(load("listen = \"127.0.0.1:1\"\n", &[], &[]).is_err());
        assert!(load("", &[("KEYVOUCH__LISTEN", "x")], &[]).is_err());
        assert!(load("", &[("KEYVOUCH_ADDR", "x"), ("OTHER__X", "y")], &[]).is_ok());
    }

    #[test]
    fn a_wrong_value_is_named_but_not_shown() {
        let cases = [
            ("[server]\nmax_connections = \"hunter2\"\n", "server.max_connections: "),
            ("[admin]\ntokens = [\"hunter2\"]\n", "admin.tokens[0]: "),
            ("[store]\ntimeout = \"hunter2\"\n", "store.timeout: "),
            ("[telemetry]\nlog_filter = \"=hunter2=\"\n", "telemetry.log_filter: "),
            ("[admin]\ntokens = [\"hunter2\n", ""),
        ];
        for (file, begin) in cases {
            let error = load(file, &[], &[]).unwrap_err();
            assert!(error.starts_with(begin) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn what_would_expose_the_key_store_is_refused() {
        let open = "[server]\nlisten = \"0.0.0.0:1\"\n[admin]\ninsecure = true\n";
        assert!(load(open, &[], &[]).unwrap_err().starts_with("admin.insecure: would let every client"));
        let unset = "[server]\nlisten = [\"127.0.0.1:1\", \"0.0.0.0:1\"]\n";
        let error = load(unset, &[], &[]).unwrap_err();
        assert!(
            error.starts_with("server.listen: 0.0.0.0:1 can be reached")
                && error.contains("admin.tokens_file")
        );
        let both = "[admin]\ninsecure = true\ntokens = [\"root:a-token-of-enough-characters\"]\n";
        assert!(load(both, &[], &[]).unwrap_err().starts_with("admin.insecure: can't be true"));
    }

    #[test]
    fn neither_debug_nor_show_has_a_secret() {
        let file = "[admin]\ntokens = [\"root:hunter2-hunter2-hunter2\"]\n\
                    [store]\nurl = \"postgres://u:hunter2@h/d\"\nsql.replica_url = \"postgres://u:hunter2@g/d\"\n\
                    [cache.redis]\nurl = \"redis://:hunter2@h\"\n";
        let config = load(file, &[], &[]).unwrap();
        assert!(!format!("{config:?} {:?}", config.parse().unwrap()).contains("hunter2"));
        assert!(!toml::to_string(&config).unwrap().contains("hunter2"));
    }

    proptest! {
        #[test]
        fn no_text_panics(file in any::<String>(), text in any::<String>()) {
            let _ = load(&file, &[], &[]);
            for name in ["server.listen", "keys.foreign", "store.url", "server.workers", "usage.flush_interval"] {
                let _ = load("", &[], &[(name, &text)]);
            }
        }
    }
}
