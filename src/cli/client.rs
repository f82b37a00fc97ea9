//! Connections to a running server.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};
use zeroize::Zeroizing;

use super::arguments;
use super::profile::{self, Target};
use crate::app::TOKEN_FILE;
use crate::grpc::pb::key_store_client::KeyStoreClient;
use crate::grpc::pb::validator_client::ValidatorClient;

pub(super) const DEFAULT_ADDRESS: &str = "127.0.0.1:50051";
/// Maximum size of a response; larger than any page that the server sends.
const MAX_MESSAGE_BYTES: usize = 8 * 1024 * 1024;

/// Address of the server, and credential of the caller.
#[derive(Clone, Debug, Args)]
pub(super) struct ClientArgs {
    #[command(flatten)]
    given: Target,
    /// Named profile to use. Explicit flags override it. If the profile has a credential, `--addr` must not name another
    /// server.
    #[arg(long, env = "KEYVOUCH_PROFILE", value_name = "NAME")]
    profile: Option<String>,
    /// Path to the profiles file [default: `$XDG_CONFIG_HOME/keyvouch/profiles.toml`].
    #[arg(long, env = "KEYVOUCH_PROFILES", value_name = "FILE")]
    profiles: Option<PathBuf>,
    /// Timeout of the connection and of each unary call, for example 500ms or 10s. Streams have no timeout.
    #[arg(long, env = "KEYVOUCH_TIMEOUT", value_parser = humantime::parse_duration, default_value = "10s")]
    timeout: Duration,
}

/// A channel that adds the credential to each call.
pub(super) type Credentialed = InterceptedService<Channel, Credential>;

/// Adds the token to each call, if one is set.
#[derive(Clone)]
pub(super) struct Credential(Option<MetadataValue<Ascii>>);

impl Interceptor for Credential {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = &self.0 {
            request.metadata_mut().insert("authorization", header.clone());
        }
        Ok(request)
    }
}

impl ClientArgs {
    pub(super) async fn key_store(&self) -> Result<KeyStoreClient<Credentialed>> {
        let target = self.target()?;
        let client = KeyStoreClient::with_interceptor(self.connect_to(&target).await?, target.credential()?);
        Ok(client.max_decoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// Connects to `Validator`. The credential is sent only if `needs_credential` is true or the user named a token
    /// file.
    pub(super) async fn validator(&self, needs_credential: bool) -> Result<ValidatorClient<Credentialed>> {
        let target = self.target()?;
        let is_named = target.token_file.is_some();
        let credential = if needs_credential || is_named { target.credential()? } else { Credential(None) };
        Ok(ValidatorClient::with_interceptor(self.connect_to(&target).await?, credential))
    }

    pub(super) async fn connect(&self) -> Result<Channel> {
        self.connect_to(&self.target()?).await
    }

    async fn connect_to(&self, target: &Target) -> Result<Channel> {
        let endpoint = target.endpoint()?;
        let channel = tokio::time::timeout(self.timeout, endpoint.connect()).await;
        let channel = channel.map_err(anyhow::Error::from).and_then(|channel| Ok(channel?));
        channel.with_context(|| format!("--addr: can't connect to {}", endpoint.uri()))
    }

    /// Creates a unary request with the timeout. Streams have no timeout and don't use this.
    pub(super) fn call<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }

    fn target(&self) -> Result<Target> {
        let given = self.given.clone();
        Ok(match &self.profile {
            Some(name) => given.or(name, profile::read(name, self.profiles.as_deref())?)?,
            None => given,
        })
    }
}

impl Target {
    fn address(&self) -> &str {
        self.addr.as_deref().unwrap_or(DEFAULT_ADDRESS)
    }

    fn endpoint(&self) -> Result<Endpoint> {
        let address = self.address();
        let url = if address.starts_with("unix:") || address.contains("://") {
            address.to_owned()
        } else {
            format!("http://{address}")
        };
        let has_tls = url.starts_with("https:");
        let endpoint = Endpoint::from_shared(url).with_context(|| {
            format!("--addr: invalid address `{address}`; expected HOST:PORT, a URL or unix:/path")
        })?;
        if has_tls {
            return endpoint
                .tls_config(self.tls()?)
                .context("--ca-file, --cert-file, --cert-key-file: invalid certificate or private key");
        }
        if self.ca_file.is_some() || self.cert_file.is_some() || self.server_name.is_some() {
            bail!("--ca-file, --cert-file and --server-name need TLS; use --addr https://HOST:PORT");
        }
        Ok(endpoint)
    }

    fn tls(&self) -> Result<ClientTlsConfig> {
        let read = |option: &str, file: &Path| {
            std::fs::read(file).with_context(|| format!("{option}: can't read {}", file.display()))
        };
        let mut tls = match &self.ca_file {
            Some(file) => {
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("--ca-file", file)?))
            }
            None => ClientTlsConfig::new().with_native_roots(),
        };
        match (&self.cert_file, &self.cert_key_file) {
            (Some(certificate), Some(key)) => {
                let key = Zeroizing::new(read("--cert-key-file", key)?);
                tls = tls.identity(Identity::from_pem(read("--cert-file", certificate)?, &*key));
            }
            (None, None) => {}
            _ => bail!("--cert-file and --cert-key-file belong together; set both or neither"),
        }
        if let Some(name) = &self.server_name {
            tls = tls.domain_name(name);
        }
        Ok(tls)
    }

    fn credential(&self) -> Result<Credential> {
        let token = match &self.token_file {
            Some(file) => arguments::secret(Some(file)).context("--token-file")?,
            None if self.is_local()? && Path::new(TOKEN_FILE).exists() => {
                arguments::secret(Some(Path::new(TOKEN_FILE)))?
            }
            None => return Ok(Credential(None)),
        };
        let header = format!("Bearer {}", token.trim());
        let mut header: MetadataValue<Ascii> =
            header.parse().context("--token-file: the token has a character that is not visible ASCII")?;
        header.set_sensitive(true);
        Ok(Credential(Some(header)))
    }

    /// Returns whether the server is on this machine. The default token file is used only then.
    fn is_local(&self) -> Result<bool> {
        if self.address().starts_with("unix:") {
            return Ok(true);
        }
        let endpoint = self.endpoint()?;
        let host = endpoint.uri().host().unwrap_or_default().trim_matches(['[', ']']);
        let is_loopback = host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
        Ok(is_loopback || host.eq_ignore_ascii_case("localhost"))
    }
}

/// Runs a command that calls a server.
pub(super) fn block_on(command: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("can't start the runtime")?.block_on(command)
}

/// Runs a command that reads files while it calls a server. Blocking reads that are still pending at its end are
/// abandoned.
pub(super) fn block_on_threads(command: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.context("can't start the runtime")?;
    let outcome = runtime.block_on(command);
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(addr: &str) -> Target {
        Target { addr: Some(addr.into()), ..Target::default() }
    }

    #[test]
    fn only_addresses_of_this_machine_are_local() {
        for local in
            ["127.0.0.1:1", "localhost:1", "http://127.0.0.1:1", "http://[::1]:1", "unix:/run/kv.sock"]
        {
            assert!(at(local).is_local().unwrap(), "{local}");
        }
        for remote in
            ["192.0.2.1:1", "localhost.example.com:1", "http://127.0.0.1.example.com:1", "[2001:db8::1]:1"]
        {
            assert!(!at(remote).is_local().unwrap(), "{remote}");
        }
    }
}
