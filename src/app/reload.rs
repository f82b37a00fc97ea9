//! Reloads certificates and tokens when their files change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::config::AdminConfig;
use crate::grpc::AdminToken;
use crate::server::{Tls, TlsFiles};
use crate::telemetry::{ReloadMetrics, error_chain};

/// The files to reload, and the receiver of their new content.
#[derive(Debug)]
pub(super) enum Reloaded {
    /// Certificates. New ones apply to new connections.
    Tls(TlsFiles, watch::Sender<Arc<Tls>>),
    /// Tokens of administrators.
    Tokens(AdminConfig, watch::Sender<Arc<[AdminToken]>>),
}

impl Reloaded {
    fn paths(&self) -> Vec<PathBuf> {
        match self {
            Self::Tls(files, _) => files.paths(),
            Self::Tokens(config, _) => vec![config.tokens_file.clone()],
        }
    }

    /// Returns the kind of the files, as a metric label.
    fn name(&self) -> &'static str {
        match self {
            Self::Tls(..) => ReloadMetrics::CERTIFICATES,
            Self::Tokens(..) => ReloadMetrics::ADMIN_TOKENS,
        }
    }

    /// Reads the files. If they are not usable, logs an error, and the previous content stays in use.
    fn reload(&self, is_first: bool, metrics: &ReloadMetrics) {
        let outcome: Result<(), Box<dyn std::error::Error>> = match self {
            Self::Tls(files, current) => {
                files.load().map(|tls| drop(current.send_replace(tls))).map_err(Into::into)
            }
            Self::Tokens(config, current) => config
                .load_tokens()
                .map(|tokens| drop(current.send_replace(tokens.into())))
                .map_err(Into::into),
        };
        let files = self.name();
        if !(is_first && outcome.is_ok()) {
            metrics.reloaded(files, outcome.is_ok());
        }
        match outcome {
            Ok(()) if is_first => {}
            Ok(()) => tracing::info!(files, "files changed, and what is in them is in use"),
            Err(error) => {
                let error = error_chain(error.as_ref());
                tracing::error!(%error, files, "files changed and can't be used: what was read before stays in use");
            }
        }
    }

    /// Checks the files every `interval`, forever. Mounted secrets are replaced through symbolic links, which
    /// file system notifications miss.
    pub(super) async fn run(self, interval: Duration, metrics: ReloadMetrics) {
        let paths = self.paths();
        // The first tick reads the files again, because they may have changed since the startup read them.
        let mut seen = None;
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let now = Some(digests(&paths).await);
            if now != seen {
                self.reload(seen.is_none(), &metrics);
                seen = now;
            }
        }
    }
}

/// Returns the digest of each file, or `None` for one that can't be read.
async fn digests(paths: &[PathBuf]) -> Vec<Option<[u8; 32]>> {
    let digest = |path: &Path| Some(Sha256::digest(std::fs::read(path).ok()?).into());
    let paths = paths.to_vec();
    let digests = tokio::task::spawn_blocking(move || paths.iter().map(|path| digest(path)).collect());
    digests.await.unwrap_or_default()
}
