//! The client of a connection: its address, and the names in its certificate.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::domain::Timestamp;

/// Maximum number of names of a certificate in a log entry, and of characters of each. A SPIFFE id can be longer, but its
/// beginning tells which one it is.
const MAX_LOGGED_NAMES: usize = 8;
const MAX_LOGGED_CHARS: usize = 128;

/// The client of a connection.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    address: Option<IpAddr>,
    certificate: Option<Arc<PeerCertificate>>,
}

/// A client certificate that was verified during the handshake.
#[derive(Debug)]
struct PeerCertificate {
    names: Vec<CertificateName>,
    /// The first instant at which the certificate is no longer valid. `None` if that is later than any [`Timestamp`].
    expires_at: Option<Timestamp>,
}

/// A name in the certificate's extension `subjectAltName` (RFC 5280, section 4.2.1.6). Names of different types are
/// different even if their texts are equal, because a certificate authority may be constrained only in names of one
/// type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateName {
    /// A DNS name.
    Dns(String),
    /// A URI, such as a SPIFFE id.
    Uri(String),
}

impl CertificateName {
    /// Returns the text of the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Dns(name) | Self::Uri(name) => name,
        }
    }

    /// Returns whether `configured`, a name in the settings, is this name. With a colon it is a URI, and otherwise a
    /// DNS name.
    #[must_use]
    pub fn matches_configured(&self, configured: &str) -> bool {
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

    /// Returns the client's IP address. `None` on a Unix socket.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// Returns the names in the client's certificate. Empty without a certificate, or if the certificate has expired at
    /// `now`.
    #[must_use]
    pub fn names(&self, now: Timestamp) -> &[CertificateName] {
        match self.certificate.as_deref() {
            Some(certificate) if certificate.expires_at.is_none_or(|expires_at| now < expires_at) => {
                &certificate.names
            }
            _ => &[],
        }
    }

    /// Describes the client's certificate for the log: its first names, escaped and cut, or why it has none that count at
    /// `now`. `None` without a certificate.
    pub(crate) fn describe_certificate(&self, now: Timestamp) -> Option<String> {
        let all = &self.certificate.as_ref()?.names;
        let valid = self.names(now);
        if valid.is_empty() {
            return Some(if all.is_empty() { "no DNS name and no URI" } else { "expired" }.to_owned());
        }
        let mut text = valid.iter().take(MAX_LOGGED_NAMES).map(described).collect::<Vec<_>>().join(", ");
        if valid.len() > MAX_LOGGED_NAMES {
            text.push_str(&format!(" and {} more", valid.len() - MAX_LOGGED_NAMES));
        }
        Some(text)
    }

    /// Returns the remaining validity of its certificate at `now`. `None` without a certificate, or if the certificate
    /// expires later than any [`Timestamp`].
    pub(crate) fn remaining_lifetime(&self, now: Timestamp) -> Option<Duration> {
        let expires_at = self.certificate.as_ref()?.expires_at?;
        Some(expires_at.since(now))
    }
}

impl PeerCertificate {
    fn read(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        // The validity includes its last second (RFC 5280, section 4.1.2.5).
        let expires_at = certificate.validity().not_after.timestamp().saturating_add(1);
        Some(Self {
            names: names(&certificate),
            expires_at: expires_at.checked_mul(1_000_000).and_then(Timestamp::from_micros),
        })
    }
}

/// Returns the type and the text of a name, without control characters and of limited length.
fn described(name: &CertificateName) -> String {
    let kind = match name {
        CertificateName::Dns(_) => "DNS",
        CertificateName::Uri(_) => "URI",
    };
    let is_printed = |letter: &char| letter.is_ascii_graphic() || *letter == ' ';
    let text = name.as_str().chars().take(MAX_LOGGED_CHARS);
    let text =
        text.map(
            |letter| {
                if is_printed(&letter) { letter.to_string() } else { letter.escape_default().to_string() }
            },
        );
    let rest = if name.as_str().chars().count() > MAX_LOGGED_CHARS { "…" } else { "" };
    format!("{kind}:{}{rest}", text.collect::<String>())
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

    const NOW: Timestamp = Timestamp::MIN;

    fn described_names(names: Vec<CertificateName>, expires_at: Option<Timestamp>) -> Option<String> {
        let certificate = Some(Arc::new(PeerCertificate { names, expires_at }));
        Peer { address: None, certificate }.describe_certificate(NOW)
    }

    #[test]
    fn certificates_are_described_by_their_escaped_names() {
        let dns = |name: &str| CertificateName::Dns(name.to_owned());
        let uri = CertificateName::Uri("spiffe://example.org/ops".to_owned());
        let described = |names| described_names(names, None).unwrap();
        assert_eq!(
            described(vec![dns("a.example"), uri.clone()]),
            "DNS:a.example, URI:spiffe://example.org/ops"
        );
        assert_eq!(described(vec![dns("a\n\u{1b}[2Jä")]), "DNS:a\\n\\u{1b}[2J\\u{e4}");
        let long = described(vec![dns(&"x".repeat(500)); 20]);
        assert!(long.len() < 1_200 && long.ends_with("x… and 12 more"), "{long}");
        assert_eq!(described(Vec::new()), "no DNS name and no URI");
        assert_eq!(described_names(vec![uri], Some(NOW)).unwrap(), "expired");
        assert_eq!(Peer::default().describe_certificate(NOW), None);
    }

    #[test]
    fn names_are_compared_by_their_type() {
        let dns = CertificateName::Dns("ops.example.com".into());
        let uri = CertificateName::Uri("spiffe://example.com/ops".into());
        assert!(dns.matches_configured("ops.example.com"));
        assert!(uri.matches_configured("spiffe://example.com/ops"));
        for (name, configured) in [
            (CertificateName::Uri("ops.example.com".into()), "ops.example.com"),
            (CertificateName::Dns("spiffe://example.com/ops".into()), "spiffe://example.com/ops"),
            (dns, "spiffe://example.com/ops"),
            (uri, "ops.example.com"),
        ] {
            assert!(!name.matches_configured(configured), "{name:?} {configured}");
        }
    }
}
