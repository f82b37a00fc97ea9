//! Tests of authentication.

use std::time::Duration;

use async_trait::async_trait;
use rcgen::{CertificateParams, KeyPair};

use super::*;
use crate::cache::{Demand, Found, KeySource, Knowledge};
use crate::domain::{
    Clock as _, KeyFormat, KeyPrefix, ManualClock, ManualStopwatch, SecretKey, SystemEntropy, Timestamp,
};
use crate::service::UsageRecorder;

/// A source without a cache, which must not be asked.
#[derive(Debug)]
struct Unused;

impl std::fmt::Display for Unused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unused")
    }
}

#[async_trait]
impl KeySource for Unused {
    async fn find(&self, _: &KeyHash, _: &Demand) -> crate::repository::Result<Found> {
        panic!("a key was looked up");
    }
}

/// Returns an authenticator that looks up no keys.
pub(super) fn authenticator(
    accepted: AcceptedCredentials,
    clock: &Arc<ManualClock>,
    stopwatch: &Arc<ManualStopwatch>,
) -> Authenticator {
    let prefix = KeyPrefix::parse("prefix", "kv_").unwrap();
    let service = ValidatorService::new(
        Arc::new(Unused),
        Arc::new(Knowledge::without_feed(Arc::<ManualStopwatch>::clone(stopwatch))),
        Duration::from_secs(5),
        Arc::new(KeyFormat::new(vec![prefix], vec![], vec![]).unwrap()),
        Arc::<ManualClock>::clone(clock),
        Arc::new(UsageRecorder::new(None)),
    );
    Authenticator::new(accepted, service)
}

fn seconds(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000).unwrap()
}

#[tokio::test]
async fn a_certificate_authenticates_until_it_expires() {
    let mut params = CertificateParams::new(vec!["api.example.org".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2030, 1, 1);
    let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    let peer = Peer::new(None, Some(certificate.der()));
    // The last second of the validity is included.
    let last = seconds(1_893_456_000);
    assert_eq!(peer.remaining_lifetime(last), Some(Duration::from_secs(1)));
    let (_, tokens) = watch::channel(Arc::default());
    let certificates =
        CertificateNames { validator: vec!["api.example.org".into()], ..CertificateNames::default() };
    let clock = Arc::new(ManualClock::new(last));
    let auth = authenticator(AcceptedCredentials::Listed { tokens, certificates }, &clock, &Arc::default());
    let mut extensions = Extensions::new();
    extensions.insert(peer);
    let headers = HeaderMap::new();
    let caller = auth.authenticate(&headers, &extensions, "r").await.unwrap();
    assert_eq!(caller.context(clock.now()).actor, "certificate:api.example.org");
    clock.advance(Duration::from_secs(1));
    let rejected = auth.authenticate(&headers, &extensions, "r").await.unwrap_err();
    assert_eq!(rejected.code(), tonic::Code::Unauthenticated);
}

/// Whether the key is valid is unknown, so the call is not answered with `UNAUTHENTICATED`.
#[tokio::test]
async fn a_cache_only_call_looks_up_no_credential() {
    let clock = Arc::new(ManualClock::new(seconds(0)));
    let auth = authenticator(AcceptedCredentials::default(), &clock, &Arc::default());
    let secret = SecretKey::generate(&KeyPrefix::parse("prefix", "kv_").unwrap(), &SystemEntropy).unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("authorization", format!("Bearer {}", secret.expose()).parse().unwrap());
    let mut extensions = Extensions::new();
    extensions.insert(CacheOnly);
    let rejected = auth.authenticate(&headers, &extensions, "r").await.unwrap_err();
    assert_eq!(rejected.code(), tonic::Code::ResourceExhausted);
}

#[test]
fn a_token_authenticates_the_caller_with_its_name() {
    let digest = data_encoding::HEXUPPER.encode(KeyHash::of("another-token-of-enough").as_bytes());
    let tokens = [
        AdminToken::parse("alice:a-token-of-enough-characters").unwrap(),
        AdminToken::parse(&format!("bob:sha256:{digest}")).unwrap(),
    ];
    let actor = |token| by_token(&tokens, token, "r").map(|caller| caller.context(Timestamp::MIN).actor);
    assert_eq!(actor("a-token-of-enough-characters").unwrap(), "token:alice");
    assert_eq!(actor("another-token-of-enough").unwrap(), "token:bob");
    assert_eq!(actor("A-TOKEN-OF-ENOUGH-CHARACTERS"), None);
}

#[test]
fn only_bearer_tokens_are_accepted() {
    for (header, token) in [
        ("Bearer abc", Some("abc")),
        ("bEARER  abc ", Some("abc")),
        ("", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("abc", None),
        ("Basic YTpi", None),
        ("Bearer\tabc", None),
    ] {
        assert_eq!(bearer_token(header), token, "{header:?}");
    }
}

#[test]
fn a_certificate_authenticates_only_by_a_complete_name() {
    let known = CertificateNames {
        admin: vec!["spiffe://example.org/ops".into()],
        validator: vec!["api.example.org".into()],
    };
    let caller = |names: &[&str]| {
        let name = |&name: &&str| {
            if name.contains(':') {
                CertificateName::Uri(name.to_owned())
            } else {
                CertificateName::Dns(name.to_owned())
            }
        };
        by_certificate(&known, &names.iter().map(name).collect::<Vec<_>>(), "r")
    };
    assert!(caller(&["x.example.org", "spiffe://example.org/ops"]).unwrap().may(Permission::Write));
    let validator = caller(&["api.example.org"]).unwrap();
    assert!(validator.may(Permission::Validate) && !validator.may(Permission::Read));
    for unknown in [&[][..], &["spiffe://example.org/ops/evil"], &["example.org"], &["API.example.org."]] {
        assert!(caller(unknown).is_none(), "{unknown:?}");
    }
}
