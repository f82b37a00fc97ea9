//! `keyvouch serve`

use std::io::{IsTerminal as _, stdout};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::SettingsArgs;
use super::output::print;
use crate::app::{AdminDoor, App, Surroundings};
use crate::config::ListenAddr;
use crate::telemetry::init_logs;

/// How long the runtime may take to end when all is done.
const RUNTIME_SHUTDOWN: Duration = Duration::from_secs(1);

pub(super) fn run(settings: SettingsArgs) -> Result<ExitCode> {
    let config = settings.load()?;
    init_logs(config.telemetry.log_format, &config.telemetry.log_filter)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("can't start")?;
    let outcome = runtime.block_on(async {
        let signals = Signals::install()?;
        let app = App::prepare(&config, Surroundings::default()).await?;
        announce(&app)?;
        tracing::info!(version = env!("CARGO_PKG_VERSION"), store = %app.store().repository, "started");
        app.run(signals.first()).await
    });
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN);
    match &outcome {
        Ok(()) => tracing::info!("stopped"),
        Err(error) => tracing::error!(error = format!("{error:#}"), "stopped"),
    }
    outcome.map(|()| ExitCode::SUCCESS)
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn install() -> Result<Self> {
        let install = |kind| signal(kind).context("can't wait for signals");
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

    /// Completes at the first signal. From then on, a second one ends the process at once.
    async fn first(mut self) {
        self.next().await;
        tracing::info!("stopping: calls in flight may end; a second signal stops at once");
        tokio::spawn(async move {
            self.next().await;
            tracing::warn!("stopped at once by a second signal");
            std::process::exit(1);
        });
    }
}

/// Tells people what to type next.
fn announce(app: &App) -> Result<()> {
    let program = std::env::args().next().unwrap_or_else(|| "keyvouch".into());
    let addresses: Vec<_> = app.addresses().map(ToString::to_string).collect();
    let mut text = format!(
        "Keyvouch {} listens on {}\n  store: {}\n  admin: {}\n",
        env!("CARGO_PKG_VERSION"),
        addresses.join(", "),
        app.store().repository,
        describe(app.door())?,
    );
    let addr = match app.addresses().find(|address| address.is_local()) {
        Some(ListenAddr::Tcp(address)) if address.port() == 50051 && address.ip().is_ipv4() => String::new(),
        Some(address) => format!(" --addr {address}"),
        None => String::new(),
    };
    let addr = match app.door() {
        AdminDoor::FirstStart { file, .. }
            if file.parent().is_some_and(|folder| !folder.as_os_str().is_empty()) =>
        {
            format!("{addr} --token-file {}", file.display())
        }
        AdminDoor::Configured(_) => format!("{addr} --token-file FILE"),
        AdminDoor::FirstStart { .. } | AdminDoor::Open => addr,
    };
    text.push_str(&format!(
        "\nNext, in another terminal of this folder:\n  \
         {program} key create{addr} --name first --owner me --scope read\n  \
         {program} validate{addr} --scope read      # then paste the secret and press Ctrl-D\n  \
         {program} key list{addr}"
    ));
    print(&text)
}

fn describe(door: &AdminDoor) -> Result<String> {
    Ok(match door {
        AdminDoor::Open => "open to everyone on this machine (admin.insecure)".into(),
        AdminDoor::Configured(tokens) => format!("{} configured token(s)", tokens.len()),
        AdminDoor::FirstStart { file, is_new: true, .. } if stdout().is_terminal() => {
            let token = super::arguments::secret(Some(file))?;
            format!("token {} (made just now; kept in {})", token.as_str(), file.display())
        }
        AdminDoor::FirstStart { file, is_new, .. } => {
            format!("the token in {}{}", file.display(), if *is_new { " (made just now)" } else { "" })
        }
    })
}
