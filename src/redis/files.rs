//! Files that connections to Redis use besides the URL.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fred::types::config::TlsConnector;
use rustls::client::ResolvesClientCert;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme};

use super::error::{InvalidSettings, Result};

/// Files that connections to Redis use besides the URL.
#[derive(Clone, Debug, Default)]
pub struct RedisFiles {
    /// PEM certificates that servers with TLS are verified against. `None`: the system's.
    pub ca: Option<PathBuf>,
    /// Certificate for servers that demand one of their clients. Read again for each connection, as are the next two.
    pub client_certificate: Option<ClientCertificate>,
    /// The password. `None`: the one in the URL.
    pub password: Option<PathBuf>,
}

/// A certificate and its private key.
#[derive(Clone, Debug)]
pub struct ClientCertificate {
    /// PEM file of the certificate and of those that lead to its root.
    pub certificate: PathBuf,
    /// PEM file of its private key.
    pub key: PathBuf,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl RedisFiles {
    /// Whether the files are of use for connections with TLS alone.
    pub(super) fn need_tls(&self) -> bool {
        self.ca.is_some() || self.client_certificate.is_some()
    }

    /// Makes connections that verify servers, and that show the client's certificate.
    ///
    /// # Errors
    /// A file can't be used now.
    pub(super) fn tls(&self) -> Result<TlsConnector> {
        let config = self.client_config();
        Ok(config.map_err(InvalidSettings::new)?.into())
    }

    fn client_config(&self) -> std::result::Result<ClientConfig, Failure> {
        let provider = Arc::new(ring::default_provider());
        let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = versions.with_root_certificates(roots(self.ca.as_deref())?);
        let Some(certificate) = &self.client_certificate else { return Ok(builder.with_no_client_auth()) };
        certificate.load()?;
        Ok(builder.with_client_cert_resolver(Arc::new(certificate.clone())))
    }
}

fn roots(ca: Option<&Path>) -> std::result::Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    let Some(ca) = ca else {
        // Some of the system's certificates may be unusable.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    for certificate in certificates(ca)? {
        roots.add(certificate)?;
    }
    if roots.is_empty() {
        return Err("the file of certificates has none".into());
    }
    Ok(roots)
}

fn certificates(path: &Path) -> std::result::Result<Vec<CertificateDer<'static>>, pem::Error> {
    CertificateDer::pem_file_iter(path)?.collect()
}

impl ClientCertificate {
    fn load(&self) -> std::result::Result<CertifiedKey, Failure> {
        let provider: CryptoProvider = ring::default_provider();
        let key = PrivateKeyDer::from_pem_file(&self.key)?;
        Ok(CertifiedKey::from_der(certificates(&self.certificate)?, key, &provider)?)
    }
}

impl ResolvesClientCert for ClientCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        // Blocking is acceptable: the files are small and local, and connections are rare.
        match self.load() {
            Ok(certificate) => Some(Arc::new(certificate)),
            Err(error) => {
                tracing::warn!(
                    error,
                    "the client certificate for Redis can't be read; connecting without it"
                );
                None
            }
        }
    }

    fn has_certs(&self) -> bool {
        true
    }
}
