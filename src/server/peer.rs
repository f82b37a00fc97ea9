//! Who is at the other end of a connection.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// The other end of a connection.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    address: Option<IpAddr>,
    names: Arc<[String]>,
}

impl Peer {
    pub(super) fn new(address: Option<IpAddr>, certificate: Option<&CertificateDer<'_>>) -> Self {
        Self { address, names: certificate.map(|it| names(it)).unwrap_or_default().into() }
    }

    /// Its address; none on a Unix socket.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// The names of its certificate, which was verified: DNS names and URIs of the extension `subjectAltName` (RFC 5280,
    /// section 4.2.1.6). Empty if it has none.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).collect()
}
