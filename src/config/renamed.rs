//! Settings that were renamed. Their old names are accepted for one release.

use std::fmt;

use toml::{Table, Value};

use super::{ConfigError, StoreConfig};
use crate::redis::is_scheme;

/// A setting that was renamed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Renaming {
    pub(super) old: &'static str,
    pub(super) new: &'static str,
    /// The new name if `store.url` is that of Redis. `None` if the new name is the same for all backends.
    on_redis: Option<&'static str>,
}

/// All old names.
pub(super) const RENAMINGS: [Renaming; 19] = [
    renaming("server.tls.reload_interval", "reload.interval"),
    renaming("store.schema", "store.sql.schema"),
    renaming("store.table_prefix", "store.sql.table_prefix"),
    renaming("store.migrations_table", "store.sql.migrations_table"),
    renaming("store.replica_url", "store.sql.replica_url"),
    renaming("store.lock_timeout", "store.sql.lock_timeout"),
    renaming("store.max_readers", "store.sql.max_readers"),
    Renaming {
        old: "store.max_writers",
        new: "store.sql.max_writers",
        on_redis: Some("store.redis.change_connections"),
    },
    renaming("store.acquire_timeout", "store.sql.acquire_timeout"),
    renaming("store.idle_timeout", "store.sql.idle_timeout"),
    renaming("store.max_lifetime", "store.sql.max_lifetime"),
    renaming("store.redis_prefix", "store.redis.prefix"),
    renaming("store.redis_min_replicas_ack", "store.redis.min_replicas_ack"),
    renaming("store.redis_max_events_per_shard", "store.redis.max_events_per_shard"),
    renaming("store.redis_ca_file", "store.redis.ca_file"),
    renaming("store.redis_cert_file", "store.redis.cert_file"),
    renaming("store.redis_key_file", "store.redis.key_file"),
    renaming("store.redis_password_file", "store.redis.password_file"),
    renaming("store.redis_strict", "store.redis.strict"),
];

const fn renaming(old: &'static str, new: &'static str) -> Renaming {
    Renaming { old, new, on_redis: None }
}

/// Returns the renaming of the setting that was called `old`.
pub(super) fn find(old: &str) -> Option<&'static Renaming> {
    RENAMINGS.iter().find(|renaming| renaming.old == old)
}

/// A setting that a source has under its old name. `Display` formats a warning, which does not contain the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenamedSetting {
    /// The old name.
    pub old: &'static str,
    /// The new name, under which the value applies.
    pub new: &'static str,
    /// The source: the file, the environment variable or the command line.
    pub origin: String,
}

impl fmt::Display for RenamedSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { old, new, origin } = self;
        write!(f, "{origin}: `{old}` is deprecated and rejected by the next release; use `{new}`")
    }
}

/// Settings of one or all sources under old names, with the sources that have them.
#[derive(Debug, Default)]
pub(super) struct OldNames(Vec<(&'static Renaming, String)>);

impl OldNames {
    /// Notes that the source `origin` has the setting `name`, if that is an old name.
    pub(super) fn note(&mut self, name: &str, origin: &str) {
        let Some(renaming) = find(name) else { return };
        if !self.0.iter().any(|(known, at)| known.old == name && at == origin) {
            self.0.push((renaming, origin.to_owned()));
        }
    }

    /// Moves the values in `table`, which has the settings of all sources, from the noted old names to the new ones.
    /// Returns what was renamed.
    ///
    /// # Errors
    /// A setting has a value under its old name and another one under its new name.
    pub(super) fn apply(self, table: &mut Table) -> Result<Vec<RenamedSetting>, ConfigError> {
        let on_redis = is_on_redis(table);
        let mut renamed = Vec::new();
        for (renaming, origin) in self.0 {
            let Renaming { old, new, on_redis: new_on_redis } = *renaming;
            let name = new_on_redis.filter(|_| on_redis).unwrap_or(new);
            // Sources override each other under the old name too, so there is one value to move.
            if let Some(value) = remove(table, old) {
                let mut names = [Some(new), new_on_redis].into_iter().flatten();
                if let Some(new) = names.find(|name| get(table, name).is_some()) {
                    return Err(ConfigError::BothNames { origin, old, new });
                }
                insert(table, name, value)?;
            }
            renamed.push(RenamedSetting { old, new: name, origin });
        }
        Ok(renamed)
    }
}

fn is_on_redis(table: &Table) -> bool {
    let default = StoreConfig::default();
    let url = get(table, "store.url").and_then(Value::as_str).unwrap_or(default.url.expose());
    url.split_once(':').is_some_and(|(scheme, _)| is_scheme(scheme))
}

fn get<'t>(table: &'t Table, name: &str) -> Option<&'t Value> {
    let mut parts = name.split('.');
    let first = table.get(parts.next()?)?;
    parts.try_fold(first, |value, part| value.get(part))
}

fn remove(table: &mut Table, name: &str) -> Option<Value> {
    match name.split_once('.') {
        None => table.remove(name),
        Some((section, rest)) => remove(table.get_mut(section)?.as_table_mut()?, rest),
    }
}

/// Inserts the value of the setting `name`, and the sections of the setting.
///
/// # Errors
/// The table has a value in place of a section.
pub(super) fn insert(table: &mut Table, name: &str, value: Value) -> Result<(), ConfigError> {
    let (sections, field) = name.rsplit_once('.').unwrap_or(("", name));
    let mut table = table;
    for section in sections.split('.') {
        let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
        let Some(section) = section.as_table_mut() else {
            return Err(ConfigError::invalid(name, "its parent is not a table in the configuration file"));
        };
        table = section;
    }
    table.insert(field.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::schema::{Kind, settings};
    use crate::config::{Config, Sources};

    /// The ways in which a setting can be given.
    #[derive(Clone, Copy, Debug)]
    enum Source {
        Toml,
        Json,
        Environment,
        Flag,
    }

    impl Source {
        const ALL: [Self; 4] = [Self::Toml, Self::Json, Self::Environment, Self::Flag];

        /// Adds the setting `name` to `sources`. Returns the origin that a warning names.
        fn give(self, sources: &mut Sources, folder: &std::path::Path, name: &str, text: &str) -> String {
            let kind = settings()[find(name).map_or(name, |renaming| renaming.new)];
            let quoted = match kind {
                Kind::Text => format!("{text:?}"),
                Kind::Boolean | Kind::Integer | Kind::Number | Kind::List => text.to_owned(),
            };
            let file = |sources: &mut Sources, name: &str, text: String| {
                let path = folder.join(name);
                fs::write(&path, text).unwrap();
                sources.file = Some(path.clone());
                path.display().to_string()
            };
            match self {
                Self::Toml => file(sources, "kv.toml", format!("{name} = {quoted}\n")),
                Self::Json => {
                    let object =
                        name.rsplit('.').fold(quoted, |value, part| format!("{{{part:?}: {value}}}"));
                    file(sources, "kv.json", object)
                }
                Self::Environment => {
                    let variable = format!("KEYVOUCH__{}", name.to_uppercase().replace('.', "__"));
                    sources.environment.push((variable.clone(), text.to_owned()));
                    format!("the variable {variable}")
                }
                Self::Flag => {
                    sources.flags.push((name.to_owned(), text.to_owned()));
                    "the command line".to_owned()
                }
            }
        }
    }

    /// Returns flags that are needed for a value of the setting `new` to be valid, and a value that is not the default.
    fn example(new: &str) -> (Vec<(String, String)>, &'static str) {
        let postgres = || vec![("store.url".to_owned(), "postgres://u@h/d".to_owned())];
        match new {
            "store.sql.schema" => (postgres(), "own"),
            "store.sql.replica_url" => (postgres(), "postgres://hunter2@replica/d"),
            "store.sql.table_prefix" => (Vec::new(), "own_"),
            "store.redis.cert_file" => (vec![("store.redis.key_file".to_owned(), "key".to_owned())], "own"),
            "store.redis.key_file" => (vec![("store.redis.cert_file".to_owned(), "cert".to_owned())], "own"),
            "store.sql.migrations_table"
            | "store.redis.prefix"
            | "store.redis.ca_file"
            | "store.redis.password_file" => (Vec::new(), "own"),
            "store.redis.strict" => (Vec::new(), "true"),
            _ if settings()[new] == Kind::Integer => (Vec::new(), "7"),
            _ => (Vec::new(), "7s"),
        }
    }

    /// Returns the value of a setting as `config show` prints it.
    fn shown(config: &Config, name: &str) -> String {
        let table = Table::try_from(config).unwrap();
        get(&table, name).unwrap_or_else(|| panic!("{name} has no value")).to_string()
    }

    #[test]
    fn every_old_name_is_accepted_from_every_source_with_one_warning() {
        let folder = tempfile::tempdir().unwrap();
        for renaming in RENAMINGS {
            let (needed, text) = example(renaming.new);
            let mut expected = Sources { flags: needed.clone(), ..Sources::default() };
            Source::Flag.give(&mut expected, folder.path(), renaming.new, text);
            let expected = expected.load().unwrap();
            assert_eq!(expected.renamed, []);
            let expected = shown(&expected.config, renaming.new);
            assert_ne!(expected, shown(&Config::default(), renaming.new), "{renaming:?}");
            for source in Source::ALL {
                let mut sources = Sources { flags: needed.clone(), ..Sources::default() };
                let origin = source.give(&mut sources, folder.path(), renaming.old, text);
                let loaded = sources.load().unwrap();
                let warning = RenamedSetting { old: renaming.old, new: renaming.new, origin };
                assert_eq!(loaded.renamed, [warning], "{source:?}");
                assert_eq!(shown(&loaded.config, renaming.new), expected, "{source:?}");
            }
        }
    }

    #[test]
    fn old_names_are_not_settings_and_new_ones_are() {
        let settings = settings();
        for Renaming { old, new, on_redis } in RENAMINGS {
            assert!(!settings.contains_key(old), "{old}");
            assert!(settings.contains_key(new), "{new}");
            // The text of a variable is parsed before the backend is known.
            assert!(on_redis.is_none_or(|name| settings[name] == settings[new]), "{old}");
        }
    }

    #[test]
    fn the_old_name_and_the_new_one_together_are_rejected() {
        let folder = tempfile::tempdir().unwrap();
        for renaming in RENAMINGS {
            let (needed, text) = example(renaming.new);
            for (first, second) in [(Source::Toml, Source::Environment), (Source::Flag, Source::Json)] {
                for (source_of_old, source_of_new) in [(first, second), (second, first)] {
                    let mut sources = Sources { flags: needed.clone(), ..Sources::default() };
                    let origin_of_old = source_of_old.give(&mut sources, folder.path(), renaming.old, text);
                    source_of_new.give(&mut sources, folder.path(), renaming.new, text);
                    let error = sources.load().unwrap_err();
                    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
                    let ConfigError::BothNames { origin, old, new } = error else { panic!("{error}") };
                    assert_eq!((origin, old, new), (origin_of_old, renaming.old, renaming.new));
                }
            }
        }
    }

    #[test]
    fn the_backend_decides_what_the_old_max_writers_is() {
        let load = |url: &str, others: &[(&str, &str)]| {
            let mut sources = Sources::default();
            sources.environment.push(("KEYVOUCH__STORE__MAX_WRITERS".to_owned(), "7".to_owned()));
            sources.flags.push(("store.url".to_owned(), url.to_owned()));
            sources.flags.extend(others.iter().map(|&(name, text)| (name.to_owned(), text.to_owned())));
            sources.load()
        };
        for url in ["redis://h", "valkeys-cluster://h"] {
            let loaded = load(url, &[]).unwrap();
            assert_eq!(loaded.renamed[0].new, "store.redis.change_connections");
            assert_eq!(loaded.config.store.redis.change_connections, 7);
            assert_eq!(loaded.config.store.sql.max_writers, StoreConfig::default().sql.max_writers);
        }
        for url in ["postgres://h/d", "sqlite://kv.db", "memory:"] {
            let loaded = load(url, &[]).unwrap();
            assert_eq!(loaded.renamed[0].new, "store.sql.max_writers");
            assert_eq!(loaded.config.store.sql.max_writers, 7);
        }
        for new in ["store.redis.change_connections", "store.sql.max_writers"] {
            let error = load("redis://h", &[(new, "8")]).unwrap_err();
            assert!(matches!(error, ConfigError::BothNames { new: named, .. } if named == new), "{error}");
        }
    }

    #[test]
    fn of_several_sources_with_an_old_name_the_last_one_applies_and_each_is_warned_about() {
        let folder = tempfile::tempdir().unwrap();
        let mut sources = Sources::default();
        let origins =
            [(Source::Toml, "5"), (Source::Environment, "6"), (Source::Flag, "7"), (Source::Flag, "8")]
                .map(|(source, text)| source.give(&mut sources, folder.path(), "store.max_readers", text));
        let loaded = sources.load().unwrap();
        assert_eq!(loaded.config.store.sql.max_readers, 8);
        let warned: Vec<_> = loaded.renamed.iter().map(|renamed| renamed.origin.clone()).collect();
        assert_eq!(warned, origins[..3]);
    }

    #[test]
    fn an_error_in_a_value_names_both_names_and_never_the_value() {
        let folder = tempfile::tempdir().unwrap();
        for (old, text, new) in [
            ("store.replica_url", "postgres://hunter2@h/d", "store.sql.replica_url"),
            ("store.lock_timeout", "hunter2", "store.sql.lock_timeout"),
            ("store.max_writers", "0", "store.sql.max_writers"),
            ("server.tls.reload_interval", "0s", "reload.interval"),
            ("store.redis_prefix", "hunter2{", "store.redis.prefix"),
        ] {
            for source in Source::ALL {
                let mut sources = Sources::default();
                let given_by = source.give(&mut sources, folder.path(), old, text);
                let error = sources.load().unwrap_err();
                assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
                assert_eq!(error.setting(), Some(new), "{error}");
                let ConfigError::InOldName { origin, old: named, .. } = error else { panic!("{error}") };
                assert_eq!((origin, named), (given_by, old));
            }
        }
    }
}
