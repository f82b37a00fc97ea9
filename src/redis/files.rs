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
    /// PEM file of the certificates that verify servers with TLS. `None` means the system's certificates.
    pub ca: Option<PathBuf>,
    /// Certificate for servers that request one from clients. Its files are read again for each connection.
    /// `None` means that no certificate is sent.
    pub client_certificate: Option<ClientCertificate>,
    /// File of the password, read again for each connection. `None` means the password in the URL.
    pub password: Option<PathBuf>,
}

/// A client certificate and its private key.
#[derive(Clone, Debug)]
pub struct ClientCertificate {
    /// PEM file of the certificate and of the intermediate certificates up to its root.
    pub certificate: PathBuf,
    /// PEM file of the private key.
    pub key: PathBuf,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl RedisFiles {
    /// Returns whether the files have an effect only on connections with TLS.
    pub(super) fn need_tls(&self) -> bool {
        self.ca.is_some() || self.client_certificate.is_some()
    }

    /// Returns a connector that verifies servers and presents the client certificate.
    ///
    /// # Errors
    /// A file can't be read or is invalid.
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
        // Unparsable system certificates are skipped, because some systems have such certificates.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err(
                "the system has no root certificates; set the file of the root certificates for Redis".into(),
            );
        }
        return Ok(roots);
    };
    for certificate in certificates(ca)? {
        roots.add(certificate)?;
    }
    if roots.is_empty() {
        return Err("the file contains no certificates".into());
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
