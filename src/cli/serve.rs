//! `keyvouch serve`

use std::io::{IsTerminal as _, stdout};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::SettingsArgs;
use super::client::DEFAULT_ADDRESS;
use super::output::print;
use crate::app::{AdminAccess, App, Surroundings};
use crate::config::{Loaded, RenamedSetting};
use crate::server::ListenAddr;
use crate::telemetry::{Traces, init_logs};

/// File descriptors needed in addition to client connections: backend, listeners, runtimes.
const OTHER_DESCRIPTORS: u64 = 100;
/// Timeout of the runtime's shutdown after all tasks have ended.
const RUNTIME_SHUTDOWN: Duration = Duration::from_secs(1);

pub(super) fn run(settings: SettingsArgs) -> Result<ExitCode> {
    let Loaded { settings, renamed, .. } = settings.load()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("can't start the runtime")?;
    let traces = {
        let _entered = runtime.enter();
        settings.telemetry.traces.as_ref().map(Traces::start).transpose()?.flatten()
    };
    init_logs(settings.telemetry.log_format, settings.telemetry.log_filter.clone(), traces.as_ref())?;
    warn_of_old_names(&renamed);
    raise_descriptor_limit(settings.server.options.max_connections);
    let outcome = runtime.block_on(async {
        let mut signals = Signals::install()?;
        let app = tokio::select! {
            app = App::prepare(&settings, Surroundings::default()) => app?,
            () = signals.next() => {
                tracing::info!("stopped by a signal during startup");
                return Ok(());
            }
        };
        if let Err(error) = announce(&app) {
            // The server runs even if standard output is closed.
            tracing::debug!(error = format!("{error:#}"), "can't print the startup message");
        }
        tracing::info!(version = env!("CARGO_PKG_VERSION"), store = %app.backend(), "started");
        app.run(signals.first()).await
    });
    if let Some(traces) = traces {
        traces.shutdown();
    }
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN);
    // Logging is initialized, so a failure is only logged, and not printed a second time.
    Ok(match outcome {
        Ok(()) => {
            tracing::info!("stopped");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "stopped");
            ExitCode::FAILURE
        }
    })
}

/// Logs a warning for each setting that has its old name.
fn warn_of_old_names(renamed: &[RenamedSetting]) {
    for RenamedSetting { old, new, origin } in renamed {
        tracing::warn!(old, new, origin, "a setting has its old name, which the next release rejects");
    }
}

/// Raises the limit of open files to its maximum, because each connection needs a file descriptor.
fn raise_descriptor_limit(connections: usize) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "can't raise the limit of open files");
    }
    let needed = u64::try_from(connections).unwrap_or(u64::MAX).saturating_add(OTHER_DESCRIPTORS);
    if let Some(current) = getrlimit(Resource::Nofile).current.filter(|&current| current < needed) {
        tracing::warn!(
            current,
            needed,
            "the limit of open files is too low for server.max_connections; raise it, or lower the setting"
        );
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn install() -> Result<Self> {
        let install = |kind| signal(kind).context("can't install a signal handler");
        Ok(Self {
            terminate: install(SignalKind::terminate())?,
            interrupt: install(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Completes at the first signal. After that, a second signal exits the process immediately.
    async fn first(mut self) {
        self.next().await;
        tracing::info!("shutting down: draining calls in flight; send the signal again to exit immediately");
        tokio::spawn(async move {
            self.next().await;
            tracing::warn!("a second signal was received; exiting immediately");
            std::process::exit(1);
        });
    }
}

/// Prints the addresses, and example commands to run next.
fn announce(app: &App) -> Result<()> {
    let program = std::env::args().next().unwrap_or_else(|| "keyvouch".into());
    let addresses: Vec<_> = app.addresses().map(ToString::to_string).collect();
    let admin_addresses: Vec<_> = app.admin_addresses().map(ToString::to_string).collect();
    let admin_at = if admin_addresses == addresses {
        String::new()
    } else {
        format!(", at {}", admin_addresses.join(", "))
    };
    let mut text = format!(
        "Keyvouch {} listens on {}\n  backend: {}\n  admin: {}{admin_at}\n",
        env!("CARGO_PKG_VERSION"),
        addresses.join(", "),
        app.backend(),
        describe(app.admin_access())?,
    );
    if let Some(ops) = app.ops_address() {
        text.push_str(&format!("  metrics and probes: http://{ops}\n"));
    }
    let (validator, key_store) = (flag(app, app.addresses()), flag(app, app.admin_addresses()));
    let credential = match app.admin_access() {
        AdminAccess::FirstStart { file, .. }
            if file.parent().is_some_and(|folder| !folder.as_os_str().is_empty()) =>
        {
            format!(" --token-file {}", file.display())
        }
        AdminAccess::Configured(tokens) if tokens.is_empty() => {
            " --cert-file FILE --cert-key-file FILE".to_owned()
        }
        AdminAccess::Configured(_) => " --token-file FILE".to_owned(),
        AdminAccess::FirstStart { .. } | AdminAccess::Open => String::new(),
    };
    let key_store = format!("{key_store}{credential}");
    text.push_str(&format!(
        "\nNext, in another terminal in this directory:\n  \
         {program} key create{key_store} --name first --owner me --scope read\n  \
         {program} validate{validator} --scope read      # then paste the secret and press Ctrl-D\n  \
         {program} key list{key_store}"
    ));
    print(&text)
}

/// Returns the flags that a command needs to connect to one of `addresses`, preferably to a local one.
fn flag<'a>(app: &App, mut addresses: impl Iterator<Item = &'a ListenAddr> + Clone) -> String {
    let first = addresses.clone().find(|address| address.is_local()).or(addresses.next());
    let tls = if app.has_tls() { "https://" } else { "" };
    let roots = if app.has_tls() { " --ca-file ROOTS --server-name NAME" } else { "" };
    match first {
        Some(ListenAddr::Tcp(address)) if address.ip().is_unspecified() => {
            format!(" --addr {tls}127.0.0.1:{}{roots}", address.port())
        }
        Some(address @ ListenAddr::Tcp(_)) if app.has_tls() || address.to_string() != DEFAULT_ADDRESS => {
            format!(" --addr {tls}{address}{roots}")
        }
        Some(address @ ListenAddr::Unix(_)) => format!(" --addr {address}"),
        Some(ListenAddr::Tcp(_)) | None => String::new(),
    }
}

fn describe(access: &AdminAccess) -> Result<String> {
    Ok(match access {
        AdminAccess::Open => "open to everyone on this machine (admin.insecure)".into(),
        AdminAccess::Configured(tokens) if tokens.is_empty() => "by client certificates".into(),
        AdminAccess::Configured(tokens) => format!("{} configured token(s)", tokens.len()),
        AdminAccess::FirstStart { file, is_new: true, .. } if stdout().is_terminal() => {
            let token = super::arguments::secret(Some(file))?;
            format!("token {} (created just now; stored in {})", token.as_str(), file.display())
        }
        AdminAccess::FirstStart { file, is_new, .. } => {
            format!("the token in {}{}", file.display(), if *is_new { " (created just now)" } else { "" })
        }
    })
}
