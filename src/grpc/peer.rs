//! Who is at the other end of a connection.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::domain::{Clock as _, SystemClock, Timestamp};

/// The other end of a connection.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    address: Option<IpAddr>,
    certificate: Option<Arc<PeerCertificate>>,
}

/// A client's certificate, which was verified when the connection began.
#[derive(Debug)]
struct PeerCertificate {
    names: Vec<CertificateName>,
    /// The first instant at which it is not valid any more; `None` if that is later than any [`Timestamp`].
    expires_at: Option<Timestamp>,
}

/// A name of a certificate, in the extension `subjectAltName` (RFC 5280, section 4.2.1.6). The same text is another name if it
/// is of another type: an authority may be constrained in names of one type alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateName {
    /// A DNS name.
    Dns(String),
    /// A URI, such as a SPIFFE id.
    Uri(String),
}

impl CertificateName {
    /// The text of the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Dns(name) | Self::Uri(name) => name,
        }
    }

    /// Whether the settings mean this name by `configured`. What has a scheme there is a URI, and all else a DNS name.
    #[must_use]
    pub fn is_meant_by(&self, configured: &str) -> bool {
        match self {
            Self::Dns(name) => !configured.contains(':') && name == configured,
            Self::Uri(name) => configured.contains(':') && name == configured,
        }
    }
}

impl Peer {
    pub(crate) fn new(address: Option<IpAddr>, certificate: Option<&CertificateDer<'_>>) -> Self {
        Self { address, certificate: certificate.and_then(|it| PeerCertificate::read(it)).map(Arc::new) }
    }

    /// Its address; none on a Unix socket.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// The names of its certificate at `now`. Empty if it has none, or if the certificate has expired since the connection
    /// began.
    #[must_use]
    pub fn names(&self, now: Timestamp) -> &[CertificateName] {
        match self.certificate.as_deref() {
            Some(certificate) if certificate.expires_at.is_none_or(|expires_at| now < expires_at) => {
                &certificate.names
            }
            _ => &[],
        }
    }

    /// How long its certificate is still valid; `None` if it has none.
    pub(crate) fn remaining_lifetime(&self) -> Option<Duration> {
        let expires_at = self.certificate.as_ref()?.expires_at?;
        Some(expires_at.since(SystemClock.now()))
    }
}

impl PeerCertificate {
    fn read(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        // The last second of the validity belongs to it (RFC 5280, section 4.1.2.5).
        let expires_at = certificate.validity().not_after.timestamp().saturating_add(1);
        Some(Self {
            names: names(&certificate),
            expires_at: expires_at.checked_mul(1_000_000).and_then(Timestamp::from_micros),
        })
    }
}

fn names(certificate: &X509Certificate<'_>) -> Vec<CertificateName> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(CertificateName::Dns((*name).to_owned())),
        GeneralName::URI(name) => Some(CertificateName::Uri((*name).to_owned())),
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_by_their_type() {
        let dns = CertificateName::Dns("ops.example.com".into());
        let uri = CertificateName::Uri("spiffe://example.com/ops".into());
        assert!(dns.is_meant_by("ops.example.com"));
        assert!(uri.is_meant_by("spiffe://example.com/ops"));
        for (name, configured) in [
            (CertificateName::Uri("ops.example.com".into()), "ops.example.com"),
            (CertificateName::Dns("spiffe://example.com/ops".into()), "spiffe://example.com/ops"),
            (dns, "spiffe://example.com/ops"),
            (uri, "ops.example.com"),
        ] {
            assert!(!name.is_meant_by(configured), "{name:?} {configured}");
        }
    }
}
