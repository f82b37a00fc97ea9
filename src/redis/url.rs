//! URLs of Redis. fred ignores the parts that it does not know, and these are often mistakes: a database number in
//! the query would silently select another database.

use fred::types::config::Config;

use super::error::{InvalidSettings, Result};

const MALFORMED: &str = "malformed URL; special characters in a password must be written as %XX";

/// The kinds of deployments that a URL can lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deployment {
    Server,
    Socket,
    Sentinel,
    Cluster,
}

/// A URL scheme of Redis, or of Valkey, which has the same protocol.
#[derive(Clone, Copy, Debug)]
struct Scheme {
    deployment: Deployment,
    has_tls: bool,
}

/// A parsed URL.
pub(super) struct ParsedUrl {
    /// Settings without TLS, because fred would read the system's certificates, which may be missing.
    pub(super) config: Config,
    pub(super) has_tls: bool,
}

/// Returns whether `scheme` is a URL scheme of Redis or Valkey, in upper or lower case.
pub(crate) fn is_scheme(scheme: &str) -> bool {
    Scheme::parse(scheme).is_some()
}

/// Parses `url`.
///
/// # Errors
/// The URL is malformed, has an unsupported or a missing part, or a database number that is out of range. Errors
/// contain no part of the URL except the name of a parameter.
pub(super) fn parse(url: &str) -> Result<ParsedUrl> {
    let malformed = || InvalidSettings::new(MALFORMED);
    let (scheme, rest) = url.split_once(':').ok_or_else(malformed)?;
    let Scheme { deployment, has_tls } = Scheme::parse(scheme).ok_or_else(malformed)?;
    let before_fragment = rest.split('#').next().unwrap_or_default();
    let (place, query) = before_fragment.split_once('?').unwrap_or((before_fragment, ""));
    deployment.check_parameters(query)?;
    deployment.check_path(place)?;
    // The parser's own error can quote the URL, so it is discarded.
    let config = Config::from_url(&format!("{}:{rest}", deployment.scheme())).map_err(|_| malformed())?;
    Ok(ParsedUrl { config, has_tls })
}

impl Scheme {
    fn parse(scheme: &str) -> Option<Self> {
        let scheme = scheme.to_ascii_lowercase();
        let suffix = scheme.strip_prefix("redis").or_else(|| scheme.strip_prefix("valkey"))?;
        let (has_tls, kind) = match suffix.strip_prefix('s') {
            Some(kind) => (true, kind),
            None => (false, suffix),
        };
        let deployment = match kind {
            "" => Deployment::Server,
            "-sentinel" => Deployment::Sentinel,
            "-cluster" => Deployment::Cluster,
            "+unix" if !has_tls => Deployment::Socket,
            _ => return None,
        };
        Some(Self { deployment, has_tls })
    }
}

impl Deployment {
    /// Returns the scheme that fred knows, without TLS.
    fn scheme(self) -> &'static str {
        match self {
            Self::Server => "redis",
            Self::Socket => "redis+unix",
            Self::Sentinel => "redis-sentinel",
            Self::Cluster => "redis-cluster",
        }
    }

    fn parameters(self) -> &'static [&'static str] {
        match self {
            Self::Server | Self::Socket => &[],
            Self::Sentinel => &["node", "sentinelServiceName", "sentinelUsername", "sentinelPassword"],
            Self::Cluster => &["node"],
        }
    }

    fn check_parameters(self, query: &str) -> Result<()> {
        let parameters: Vec<_> = query
            .split('&')
            .filter(|parameter| !parameter.is_empty())
            .map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")))
            .collect();
        if let Some((name, _)) = parameters.iter().find(|(name, _)| !self.parameters().contains(name)) {
            // A `?` in an unescaped password also begins a query, which must not be shown.
            let is_a_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
            if !is_a_name || query.contains('@') {
                return Err(InvalidSettings::new(MALFORMED));
            }
            return Err(InvalidSettings::new(format!(
                "unknown parameter `{name}` in the URL; {}",
                self.hint(name)
            )));
        }
        let has_service = |(name, value): &(&str, &str)| *name == "sentinelServiceName" && !value.is_empty();
        if self == Self::Sentinel && !parameters.iter().any(has_service) {
            return Err(InvalidSettings::new(
                "`sentinelServiceName` is missing in the URL; add ?sentinelServiceName=NAME, the name that `sentinel monitor` has",
            ));
        }
        Ok(())
    }

    /// Returns what to write instead of an unknown parameter.
    fn hint(self, name: &str) -> String {
        let is_database = ["db", "database", "dbnum"].contains(&name.to_ascii_lowercase().as_str());
        match self {
            Self::Server | Self::Sentinel if is_database => {
                "the number of the database is the path, for example redis://HOST:6379/3".to_owned()
            }
            Self::Cluster if is_database => "databases of a Cluster are not supported".to_owned(),
            Self::Socket if is_database => "a socket is used with database 0".to_owned(),
            _ if Self::Cluster.parameters().contains(&name) => {
                "several nodes need a redis-sentinel: or redis-cluster: URL".to_owned()
            }
            _ if Self::Sentinel.parameters().contains(&name) => "it needs a redis-sentinel: URL".to_owned(),
            _ if self.parameters().is_empty() => "this kind of URL has no parameters".to_owned(),
            _ => format!("this kind of URL has the parameters {}", self.parameters().join(", ")),
        }
    }

    /// Checks the path in `place`, the part of a URL between the scheme and the parameters.
    fn check_path(self, place: &str) -> Result<()> {
        let place = place.strip_prefix("//").unwrap_or(place);
        let path = place.split_once('/').map_or("", |(_, path)| path);
        match self {
            Self::Cluster if !["", "0"].contains(&path) => Err(InvalidSettings::new(
                "databases of a Cluster are not supported; remove the number of the database from the URL",
            )),
            Self::Server | Self::Sentinel if !path.is_empty() && path.parse::<u8>().is_err() => {
                Err(InvalidSettings::new(
                    "the path of the URL is not a database number from 0 to 255; special characters in a password must be \
                     written as %XX",
                ))
            }
            // The path of a socket is its file.
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(url: &str) -> String {
        parse(url).err().unwrap_or_else(|| panic!("{url} is accepted")).to_string()
    }

    #[test]
    fn schemes_state_the_deployment_and_tls() {
        for (scheme, deployment, has_tls) in [
            ("redis", Deployment::Server, false),
            ("REDIS", Deployment::Server, false),
            ("Rediss", Deployment::Server, true),
            ("valkeys", Deployment::Server, true),
            ("redis-sentinel", Deployment::Sentinel, false),
            ("valkeys-sentinel", Deployment::Sentinel, true),
            ("rediss-CLUSTER", Deployment::Cluster, true),
            ("redis+unix", Deployment::Socket, false),
        ] {
            let parsed = Scheme::parse(scheme).unwrap();
            assert_eq!((parsed.deployment, parsed.has_tls), (deployment, has_tls), "{scheme}");
        }
        for scheme in ["", "s", "redi", "redisss", "rediss+unix", "redis-proxy", "valkey-", "http"] {
            assert!(!is_scheme(scheme), "{scheme}");
        }
    }

    #[test]
    fn valid_urls_keep_their_parts() {
        let config = |url: &str| parse(url).unwrap().config;
        assert_eq!(config("REDIS://h:1/3").database, Some(3));
        assert_eq!(config("redis://h").database, None);
        assert_eq!(config("redis://h/").database, None);
        assert_eq!(config("valkey://u:p%3F%40@h:1").password.as_deref(), Some("p?@"));
        assert_eq!(config("redis-cluster://h:1/0?node=i:2&node=j:3").server.hosts().len(), 3);
        let sentinel = config("redis-sentinel://h/5?sentinelServiceName=main&sentinelPassword=a@b");
        assert!(sentinel.server.is_sentinel());
        assert_eq!((sentinel.database, sentinel.server.hosts()[0].port), (Some(5), 26_379));
        assert!(parse("rediss://h").unwrap().has_tls);
    }

    #[test]
    fn unknown_and_misplaced_parts_are_named() {
        for (url, part) in [
            ("redis://h:1?db=3", "`db`"),
            ("redis://h:1/?DB=3", "/3"),
            ("redis://h:1/0?timeout=3", "`timeout`"),
            ("redis://h:1?node=i:2", "redis-cluster:"),
            ("redis://h:1?sentinelServiceName=main", "redis-sentinel:"),
            ("redis-cluster://h:1?db=3", "Cluster"),
            ("redis-cluster://h:1?sentinelServiceName=main", "redis-sentinel:"),
            ("redis-cluster://h:1/3", "Cluster"),
            ("redis-sentinel://h:1/3", "sentinelServiceName"),
            ("redis-sentinel://h:1/3?sentinelServiceName=", "sentinelServiceName"),
            ("redis+unix:///run/redis.sock?db=3", "`db`"),
            ("redis://h:1/256", "255"),
            ("redis://h:1/0/1", "255"),
            ("redis://h:1/db", "255"),
        ] {
            let problem = problem(url);
            assert!(problem.contains(part), "{url}: {problem}");
        }
    }

    #[test]
    fn no_part_of_a_password_is_shown() {
        for url in [
            "redis://u:hunter2",
            "redis://u:hunter2@h:port",
            "redis://u:1?hunter2@h",
            "redis://u:1?a&hunter2=1@h",
            "redis://u:1?hunter2%40h",
            "redis://u:1/hunter2@h",
            "redis-sentinel://u:1?hunter2@h",
            "redis-cluster://u:1/hunter2@h",
            "http://u:hunter2@h",
            "hunter2",
        ] {
            let problem = problem(url);
            assert!(!problem.contains("hunter2"), "{url}: {problem}");
        }
    }
}
