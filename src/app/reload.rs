//! Reloads certificates and tokens when their files change.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::config::{AdminTokens, open_regular_file};
use crate::grpc::AdminToken;
use crate::server::{Tls, TlsFiles};
use crate::telemetry::ReloadMetrics;

/// Loads files periodically, and puts their content to use when it differs from the content in use. Every load
/// is complete, so a failure is retried until the files can be used, and what was compared is what is used.
pub(super) struct Reloader<T> {
    /// Kind of the files, as a metric label.
    files: &'static str,
    paths: Vec<PathBuf>,
    /// Reads and parses the files. It blocks.
    load: Arc<dyn Fn() -> Result<T> + Send + Sync>,
    /// The content in use.
    current: watch::Sender<T>,
    /// The last failure, until the files can be used again.
    failure: Option<Failure>,
}

/// A load that failed. It is reported again only if it differs from the last one.
#[derive(Debug, PartialEq, Eq)]
struct Failure {
    error: String,
    /// The digest of each file, or `None` for one that can't be read. They may be those of a later content
    /// than the one that failed, which only affects how often a failure is reported.
    digests: Vec<Option<[u8; 32]>>,
}

impl Reloader<Arc<Tls>> {
    /// Creates a reloader of certificates, which apply to new connections.
    pub(super) fn certificates(files: TlsFiles, current: watch::Sender<Arc<Tls>>) -> Self {
        let paths = files.paths();
        Self::new(ReloadMetrics::CERTIFICATES, paths, current, move || Ok(files.load()?))
    }
}

impl Reloader<Arc<[AdminToken]>> {
    /// Creates a reloader of administrators' tokens. Returns `None` if no file has tokens.
    pub(super) fn tokens(tokens: AdminTokens, current: watch::Sender<Arc<[AdminToken]>>) -> Option<Self> {
        let paths = vec![tokens.file.clone()?];
        Some(Self::new(ReloadMetrics::ADMIN_TOKENS, paths, current, move || Ok(tokens.load()?.into())))
    }
}

impl<T: PartialEq + Send + Sync + 'static> Reloader<T> {
    fn new(
        files: &'static str,
        paths: Vec<PathBuf>,
        current: watch::Sender<T>,
        load: impl Fn() -> Result<T> + Send + Sync + 'static,
    ) -> Self {
        Self { files, paths, load: Arc::new(load), current, failure: None }
    }

    /// Checks the files every `interval`, forever, and for the first time at once, because they may have
    /// changed since the startup read them. Mounted secrets are replaced through symbolic links, which file
    /// system notifications miss.
    pub(super) async fn run(mut self, interval: Duration, metrics: ReloadMetrics) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.check(&metrics).await;
        }
    }

    /// Loads the files once. If they can't be used, the previous content stays in use. A failure is logged and
    /// counted once, and again if the error or a file changes.
    async fn check(&mut self, metrics: &ReloadMetrics) {
        match self.load().await {
            Ok(content) => self.succeeded(content, metrics),
            Err(failure) => self.failed(failure, metrics),
        }
    }

    /// Reads the files on a thread that may block.
    async fn load(&self) -> Result<T, Failure> {
        let (load, paths) = (Arc::clone(&self.load), self.paths.clone());
        let loading = tokio::task::spawn_blocking(move || {
            load().map_err(|error| {
                let digests = paths.iter().map(|path| digest(path)).collect();
                Failure { error: format!("{error:#}"), digests }
            })
        });
        let loaded = loading.await;
        loaded.unwrap_or_else(|stopped| Err(Failure { error: stopped.to_string(), digests: Vec::new() }))
    }

    fn succeeded(&mut self, content: T, metrics: &ReloadMetrics) {
        let files = self.files;
        let was_failing = self.failure.take().is_some();
        if *self.current.borrow() != content {
            self.current.send_replace(content);
            metrics.reloaded(files, true);
            tracing::info!(files, "changed files were reloaded");
        } else if was_failing {
            tracing::info!(files, "files can be used again; their content is already in use");
        }
    }

    fn failed(&mut self, failure: Failure, metrics: &ReloadMetrics) {
        if self.failure.as_ref() == Some(&failure) {
            return;
        }
        let (files, error) = (self.files, &failure.error);
        metrics.reloaded(files, false);
        tracing::error!(error, files, "files can't be used; the previous content stays in use");
        self.failure = Some(failure);
    }
}

impl<T> fmt::Debug for Reloader<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloader").field("paths", &self.paths).finish_non_exhaustive()
    }
}

fn digest(path: &Path) -> Option<[u8; 32]> {
    let mut content = Vec::new();
    open_regular_file(path).ok()?.read_to_end(&mut content).ok()?;
    Some(Sha256::digest(content).into())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use anyhow::anyhow;

    use super::*;
    use crate::telemetry::{Exposition, Metrics};

    fn metrics() -> (ReloadMetrics, Exposition) {
        let (metrics, exposition) = Metrics::new(&[], None, Box::new(Vec::new));
        (metrics.reloads, exposition)
    }

    /// Returns how often content was used, and how often it was refused.
    fn counts(exposition: &Exposition) -> [u64; 2] {
        let text = exposition.text().unwrap();
        ["used", "refused"].map(|outcome| {
            let series = format!(r#"keyvouch_reloads_total{{files="admin_tokens",outcome="{outcome}"}} "#);
            text.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap()
        })
    }

    type Tokens = Arc<[AdminToken]>;

    fn of_tokens(path: &Path) -> (Reloader<Tokens>, watch::Receiver<Tokens>) {
        let tokens = AdminTokens::of_file(path);
        let (sender, current) = watch::channel(tokens.load().unwrap().into());
        (Reloader::tokens(tokens, sender).unwrap(), current)
    }

    /// Returns a reloader whose loads have the given outcomes, and the content in use.
    fn scripted(outcomes: Vec<Result<u8>>) -> (Reloader<u8>, watch::Receiver<u8>) {
        let (sender, current) = watch::channel(0);
        let outcomes = Mutex::new(outcomes.into_iter());
        let load = move || outcomes.lock().unwrap().next().unwrap();
        (Reloader::new(ReloadMetrics::ADMIN_TOKENS, Vec::new(), sender, load), current)
    }

    #[tokio::test]
    async fn a_changed_file_is_used_and_an_unchanged_one_is_not_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        std::fs::write(&path, "old:the-old-token-of-this-test\n").unwrap();
        let (mut reloader, mut current) = of_tokens(&path);
        let (metrics, exposition) = metrics();
        reloader.check(&metrics).await;
        assert!(!current.has_changed().unwrap());
        let changed = "new:the-new-token-of-this-test\n";
        std::fs::write(&path, changed).unwrap();
        for _ in 0..2 {
            reloader.check(&metrics).await;
            assert_eq!(**current.borrow_and_update(), [AdminToken::parse(changed.trim()).unwrap()]);
        }
        assert_eq!(counts(&exposition), [1, 0]);
    }

    #[tokio::test]
    async fn a_file_that_can_not_be_used_is_reported_once_until_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let valid = "old:the-old-token-of-this-test\n";
        std::fs::write(&path, valid).unwrap();
        let (mut reloader, current) = of_tokens(&path);
        let (metrics, exposition) = metrics();
        for (refused, half_written) in [(1, "new:"), (2, "new:the-"), (3, "")] {
            std::fs::write(&path, half_written).unwrap();
            for _ in 0..3 {
                reloader.check(&metrics).await;
                assert_eq!(counts(&exposition), [0, refused], "{half_written}");
            }
        }
        std::fs::remove_file(&path).unwrap();
        reloader.check(&metrics).await;
        assert_eq!(counts(&exposition), [0, 4]);
        std::fs::write(&path, valid).unwrap();
        reloader.check(&metrics).await;
        assert!(!current.has_changed().unwrap(), "the content was in use all the time");
        // The same failure as before is a new one.
        std::fs::remove_file(&path).unwrap();
        reloader.check(&metrics).await;
        assert_eq!(counts(&exposition), [0, 5]);
    }

    #[tokio::test]
    async fn a_load_that_failed_is_retried_although_no_file_changes() {
        let failures = || [Err(anyhow!("not now")), Err(anyhow!("not now"))];
        let (mut reloader, current) = scripted(failures().into_iter().chain([Ok(1)]).collect());
        let (metrics, exposition) = metrics();
        for expected in [0, 0, 1] {
            reloader.check(&metrics).await;
            assert_eq!(*current.borrow(), expected);
        }
        assert_eq!(counts(&exposition), [1, 1]);
    }

    #[tokio::test]
    async fn a_load_that_panics_is_retried() {
        let (sender, current) = watch::channel(0);
        let is_to_panic = AtomicBool::new(true);
        let load = move || {
            assert!(!is_to_panic.swap(false, Ordering::SeqCst), "a fault");
            Ok(1)
        };
        let mut reloader = Reloader::new(ReloadMetrics::ADMIN_TOKENS, Vec::new(), sender, load);
        let (metrics, exposition) = metrics();
        reloader.check(&metrics).await;
        assert_eq!((*current.borrow(), counts(&exposition)), (0, [0, 1]));
        reloader.check(&metrics).await;
        assert_eq!((*current.borrow(), counts(&exposition)), (1, [1, 1]));
    }
}
