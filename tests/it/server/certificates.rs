//! Certificates of tests, and servers and clients that use them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keyvouch::config::{Config, HumanDuration, TlsConfig};
use keyvouch::conformance::api::{Api, new_key};
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::support::{TOKEN, TestServer, config};

/// A certificate authority.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, as PEM.
pub(crate) struct Pair(pub(crate) String, pub(crate) String);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// Issues a certificate for a DNS name that is valid for `length` from now on.
    pub(super) fn issue_for(&self, name: &str, length: Duration) -> Pair {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let now = keyvouch::domain::Clock::now(&keyvouch::domain::SystemClock).as_micros();
        let now = std::time::UNIX_EPOCH + Duration::from_micros(u64::try_from(now).unwrap());
        params.not_after = (now + length).into();
        self.sign(params)
    }

    /// Issues a certificate for a name of this type.
    pub(super) fn issue_as(&self, name: rcgen::SanType) -> Pair {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![name];
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        Pair(params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    /// Issues a certificate for a DNS name or a URI, valid until the beginning of `year`.
    pub(crate) fn issue(&self, name: &str, year: i32) -> Pair {
        let mut params = CertificateParams::default();
        let name = name.try_into().unwrap();
        let is_uri = str::contains(rcgen::string::Ia5String::as_str(&name), "://");
        params.subject_alt_names =
            vec![if is_uri { rcgen::SanType::URI(name) } else { rcgen::SanType::DnsName(name) }];
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        self.sign(params)
    }
}

/// Writes the files that a server is configured with. Returns their paths.
pub(super) fn write(folder: &Path, pair: &Pair) -> (PathBuf, PathBuf) {
    let (certificate, key) = (folder.join("server.pem"), folder.join("server.key"));
    std::fs::write(&certificate, &pair.0).unwrap();
    std::fs::write(&key, &pair.1).unwrap();
    (certificate, key)
}

pub(super) fn with_tls(folder: &Path, pair: &Pair, client_ca: Option<&Authority>) -> Config {
    let (cert_file, key_file) = write(folder, pair);
    let mut config = config();
    config.server.tls = TlsConfig { cert_file, key_file, ..TlsConfig::default() };
    config.reload.interval = HumanDuration(Duration::from_millis(20));
    if let Some(authority) = client_ca {
        config.server.tls.client_ca_file = folder.join("clients.pem");
        std::fs::write(&config.server.tls.client_ca_file, authority.pem()).unwrap();
    }
    config
}

pub(super) async fn connect(
    server: &TestServer,
    trusted: &[&Authority],
    own: Option<&Pair>,
) -> Result<Channel, tonic::transport::Error> {
    connect_to(server.address, trusted, own).await
}

pub(super) async fn connect_to(
    address: SocketAddr,
    trusted: &[&Authority],
    own: Option<&Pair>,
) -> Result<Channel, tonic::transport::Error> {
    let mut tls = ClientTlsConfig::new().domain_name("localhost");
    tls = tls.ca_certificates(trusted.iter().map(|authority| Certificate::from_pem(authority.pem())));
    if let Some(Pair(certificate, key)) = own {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
    endpoint.tls_config(tls).unwrap().connect().await
}

/// Returns whether a call succeeds. With TLS 1.3, a client learns only from a call that its certificate was
/// rejected.
pub(super) async fn is_served(channel: Result<Channel, tonic::transport::Error>) -> bool {
    match channel {
        Ok(channel) => Api::new(channel, TOKEN).key_store().create_key(new_key()).await.is_ok(),
        Err(_) => false,
    }
}
