//! Warnings about settings that are valid and dangerous.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::{AdminSettings, Settings, SqlPlace, StoreBackend};
use crate::telemetry::TraceOptions;

/// Permission bits of a file: users other than its owner can write to it.
const OTHERS_WRITE: u32 = 0o022;
/// Permission bit of a file: all users can read it.
const ALL_READ: u32 = 0o004;

impl Settings {
    /// Returns warnings about the permissions of files that the settings name, and about settings without an effect.
    /// Each names its setting and the fix. Files that don't exist are skipped.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let AdminSettings::Configured(tokens) = &self.admin
            && let Some(file) = &tokens.file
        {
            let can_read = "all users of this machine can read its tokens";
            let can_read = tokens.has_plain_token().then_some(can_read);
            warnings.extend(permissions(
                "admin.tokens_file",
                file,
                "make themselves administrators",
                can_read,
            ));
        }
        if let StoreBackend::Sql { place: SqlPlace::File(file), .. } = &self.store.backend {
            let can_read = "all users of this machine can read owners, names and metadata";
            warnings.extend(permissions("store.url", file, "make any key valid", Some(can_read)));
        }
        if self.telemetry.traces.as_ref().is_some_and(TraceOptions::has_unused_credentials) {
            let warning = "telemetry.otlp_endpoint: the user and password are not sent; set OTEL_EXPORTER_OTLP_HEADERS instead";
            warnings.push(warning.to_owned());
        }
        warnings
    }
}

/// Returns a warning if users other than the owner can write to `file`, with the harm that they can do, or if all users
/// can read it. In the last case, the problem is `can_read`; `None` means that there is no problem.
fn permissions(setting: &str, file: &Path, harm: &str, can_read: Option<&str>) -> Option<String> {
    let mode = fs::metadata(file).ok()?.mode();
    let problem = if mode & OTHERS_WRITE != 0 {
        format!("other users can write to it and {harm}")
    } else if mode & ALL_READ != 0 {
        can_read?.to_owned()
    } else {
        return None;
    };
    let file = file.display();
    Some(format!("{setting}: {file} has mode {:04o}, so {problem}; run `chmod 600 {file}`", mode & 0o7777))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    use crate::config::{Config, StoreUrl};

    struct Files {
        folder: tempfile::TempDir,
        config: Config,
    }

    impl Files {
        fn new(tokens: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let mut config = Config::default();
            config.store.url = StoreUrl::from(format!("sqlite://{}", folder.path().join("kv.db").display()));
            config.admin.tokens_file = folder.path().join("tokens");
            std::fs::write(&config.admin.tokens_file, tokens).unwrap();
            let files = Self { folder, config };
            files.set_mode("tokens", 0o600);
            files
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn set_mode(&self, name: &str, mode: u32) {
            std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }

        fn warnings(&self) -> Vec<String> {
            self.config.parse().unwrap().warnings()
        }
    }

    const PLAIN: &str = "alice:a-token-of-enough-characters\n";

    #[test]
    fn a_token_file_that_others_can_write_or_read_causes_a_warning() {
        let files = Files::new(PLAIN);
        assert!(files.warnings().is_empty(), "the database does not exist yet");
        for (mode, problem) in [
            (0o620, "can write to it and make themselves administrators"),
            (0o602, "can write to it"),
            (0o644, "can read its tokens"),
        ] {
            files.set_mode("tokens", mode);
            let warnings = files.warnings();
            assert_eq!(warnings.len(), 1, "{mode:o}");
            assert!(
                warnings[0].starts_with("admin.tokens_file: ") && warnings[0].contains(problem),
                "{warnings:?}"
            );
            assert!(warnings[0].contains("chmod 600") && !warnings[0].contains("a-token"), "{warnings:?}");
        }
        files.set_mode("tokens", 0o640);
        assert!(files.warnings().is_empty(), "the group can be that of a mounted secret");
    }

    #[test]
    fn digests_can_be_read_by_all() {
        let files = Files::new(&format!("# people\nalice:sha256:{}\n", "0".repeat(64)));
        files.set_mode("tokens", 0o644);
        assert!(files.warnings().is_empty());
        files.set_mode("tokens", 0o646);
        assert_eq!(files.warnings().len(), 1);
    }

    #[test]
    fn a_database_that_others_can_write_or_read_causes_a_warning() {
        let files = Files::new(PLAIN);
        std::fs::write(files.path("kv.db"), "").unwrap();
        for (mode, count) in [(0o600, 0), (0o640, 0), (0o644, 1), (0o660, 1), (0o666, 1)] {
            files.set_mode("kv.db", mode);
            let warnings = files.warnings();
            assert_eq!(warnings.len(), count, "{mode:o}: {warnings:?}");
            assert!(warnings.iter().all(|warning| warning.starts_with("store.url: ")), "{warnings:?}");
        }
    }

    #[test]
    fn credentials_of_the_collector_are_reported_as_unused() {
        let mut config = Config::default();
        config.telemetry.otlp_endpoint = "http://u:hunter2@h:4317".to_owned().into();
        assert!(config.parse().unwrap().warnings().is_empty(), "traces are disabled");
        config.telemetry.traces = true;
        let warnings = config.parse().unwrap().warnings();
        assert!(warnings.len() == 1 && !warnings[0].contains("hunter2"), "{warnings:?}");
        assert!(warnings[0].contains("OTEL_EXPORTER_OTLP_HEADERS"), "{warnings:?}");
    }
}
