//! Loads TLS certificates, at startup and when the files change.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

/// Whether clients need a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// Clients without a certificate fail the handshake.
    #[default]
    Required,
    /// Clients may omit a certificate. An invalid one fails the handshake.
    Optional,
}

/// The files of certificates and keys.
#[derive(Clone, Debug)]
pub(crate) struct TlsFiles {
    /// The server's certificate and its intermediate certificates, as PEM.
    pub certificate: PathBuf,
    /// The private key of the certificate, as PEM.
    pub key: PathBuf,
    /// The root certificates of clients, as PEM. If `None`, clients are not asked for a certificate.
    pub client_ca: Option<PathBuf>,
    /// Whether clients need a certificate. It applies only if [`client_ca`](Self::client_ca) is set.
    pub client_auth: ClientAuth,
}

/// The reason why certificates can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// A file can't be read, or is not a valid PEM file.
    #[error("{} can't be read: {problem}", path.display())]
    Unreadable {
        /// The setting that names the file.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// Description of the problem.
        problem: String,
    },
    /// The certificate does not match the private key, or one of them is of an unsupported kind.
    #[error("certificate {} does not match private key {}: {problem}", certificate.display(), key.display())]
    Mismatch {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the private key.
        key: PathBuf,
        /// Description of the problem.
        problem: rustls::Error,
    },
}

const CERTIFICATE: &str = "server.tls.cert_file";
const KEY: &str = "server.tls.key_file";
const CLIENT_CA: &str = "server.tls.client_ca_file";

impl TlsError {
    /// Returns the setting to fix.
    #[must_use]
    pub(crate) fn setting(&self) -> &'static str {
        match self {
            Self::Unreadable { setting, .. } => setting,
            Self::Mismatch { .. } => CERTIFICATE,
        }
    }
}

/// A loaded TLS configuration. Two configurations are equal if the files that they were loaded from are.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    pub(super) config: Arc<ServerConfig>,
    not_after: Option<i64>,
    /// Digest of the files.
    digest: [u8; 32],
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Tls {}

/// The bytes of the files, which are read once: the digest belongs to what is parsed.
struct PemFiles {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    client_ca: Option<Vec<u8>>,
}

impl PemFiles {
    fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let read = |setting, path: &Path| {
            std::fs::read(path).map_err(|error| unreadable_text(setting, path, error.to_string()))
        };
        Ok(Self {
            certificate: read(CERTIFICATE, &files.certificate)?,
            key: read(KEY, &files.key)?.into(),
            client_ca: files.client_ca.as_deref().map(|path| read(CLIENT_CA, path)).transpose()?,
        })
    }

    /// Returns a digest of all files. The digest of each file is hashed, so that bytes can't move from one
    /// file to the next unnoticed.
    fn digest(&self) -> [u8; 32] {
        let files = [Some(&self.certificate), Some(&*self.key), self.client_ca.as_ref()];
        let digests = files.into_iter().flatten().map(Sha256::digest);
        digests.fold(Sha256::new(), Sha256::chain_update).finalize().into()
    }
}

impl Tls {
    /// Returns the time at which the first certificate of the server's chain expires, in seconds since the
    /// Unix epoch. `None` if no certificate of the chain can be parsed.
    #[must_use]
    pub(crate) fn not_after(&self) -> Option<i64> {
        self.not_after
    }
}

impl TlsFiles {
    /// Reads the files and creates a configuration for TLS 1.2 and 1.3 with HTTP/2.
    ///
    /// # Errors
    /// Returns an error if a file can't be read or is not valid, or if the certificate does not match the
    /// key.
    pub(crate) fn load(&self) -> Result<Arc<Tls>, TlsError> {
        let files = PemFiles::read(self)?;
        let certificates = certificates(CERTIFICATE, &self.certificate, &files.certificate)?;
        let not_after = certificates.iter().filter_map(not_after).min();
        let key = PrivateKeyDer::from_pem_slice(&files.key);
        let key = key.map_err(|error| unreadable(KEY, &self.key, error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mismatch = |problem| TlsError::Mismatch {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            problem,
        };
        let versions =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = versions.map_err(mismatch)?;
        let builder = match self.client_ca.as_deref().zip(files.client_ca.as_deref()) {
            None => builder.with_no_client_auth(),
            Some((path, pem)) => {
                let problem =
                    |error: &dyn std::fmt::Display| unreadable_text(CLIENT_CA, path, error.to_string());
                let mut roots = RootCertStore::empty();
                for root in self::certificates(CLIENT_CA, path, pem)? {
                    roots.add(root).map_err(|error| problem(&error))?;
                }
                let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                if self.client_auth == ClientAuth::Optional {
                    verifier = verifier.allow_unauthenticated();
                }
                builder.with_client_cert_verifier(verifier.build().map_err(|error| problem(&error))?)
            }
        };
        let mut config = builder.with_single_cert(certificates, key).map_err(mismatch)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        if self.client_ca.is_some() {
            // A resumed session is not verified again. It would outlive the client's certificate, and be
            // renewed with each resumption.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(Arc::new(Tls { config: Arc::new(config), not_after, digest: files.digest() }))
    }

    /// Returns the files to watch for changes.
    #[must_use]
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref()]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }
}

fn not_after(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

/// Parses `pem`, the content of the file `path`.
fn certificates(
    setting: &'static str,
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = parsed.map_err(|error| unreadable(setting, path, error))?;
    if certificates.is_empty() {
        return Err(unreadable_text(setting, path, "the file contains no certificate".to_owned()));
    }
    Ok(certificates)
}

fn unreadable(setting: &'static str, path: &Path, error: pem::Error) -> TlsError {
    let problem = match error {
        pem::Error::NoItemsFound => "the file contains no such item in PEM".to_owned(),
        // Other errors can quote the file.
        _ => "not a valid PEM file".to_owned(),
    };
    unreadable_text(setting, path, problem)
}

fn unreadable_text(setting: &'static str, path: &Path, problem: String) -> TlsError {
    TlsError::Unreadable { setting, path: path.to_owned(), problem }
}
