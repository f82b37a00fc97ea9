//! Parsers of single arguments.

use std::io::{Read as _, stdin};
use std::path::Path;
use std::str::FromStr as _;

use anyhow::{Context as _, Result, bail};
use zeroize::Zeroizing;

/// Maximum number of bytes that are read of a secret; larger than any token or key.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// Parses `SECTION.FIELD=VALUE`.
pub(super) fn setting(text: &str) -> Result<(String, String), String> {
    pair(text).map_err(|_| "expected SECTION.FIELD=VALUE".to_owned())
}

/// Parses `KEY=VALUE`.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// Parses a duration such as `30d`, `12h 30m` or `90s`.
pub(super) fn duration(text: &str) -> Result<prost_types::Duration, String> {
    let explain = |_| "invalid duration; examples: 30d, 12h, 90s".to_owned();
    let parsed = humantime::parse_duration(text).map_err(explain)?;
    prost_types::Duration::try_from(parsed).map_err(|_| "duration too long".to_owned())
}

/// Parses a time in the format of RFC 3339.
pub(super) fn time(text: &str) -> Result<prost_types::Timestamp, String> {
    prost_types::Timestamp::from_str(text)
        .map_err(|_| "invalid time; expected RFC 3339, for example 2030-01-31T12:00:00Z".to_owned())
}

/// Reads a secret from the file `path`, or from standard input if it is `None`. A final line feed is not part of it.
pub(super) fn secret(path: Option<&Path>) -> Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    let read = match path {
        None => stdin().lock().take(MAX_SECRET_BYTES).read_to_string(&mut text),
        Some(path) => {
            let file = std::fs::File::open(path).with_context(|| format!("can't read {}", path.display()))?;
            file.take(MAX_SECRET_BYTES).read_to_string(&mut text)
        }
    };
    let place = || path.map_or_else(|| "standard input".to_owned(), |path| path.display().to_string());
    read.with_context(|| format!("can't read {}", place()))?;
    let trimmed = text.trim_end_matches(['\r', '\n']);
    if trimmed.is_empty() {
        bail!("{} is empty", place());
    }
    Ok(Zeroizing::new(trimmed.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_times_and_pairs_are_parsed() {
        assert_eq!(duration("30d").unwrap().seconds, 30 * 86_400);
        assert!(duration("soon").is_err());
        assert_eq!(time("1970-01-01T00:01:00Z").unwrap().seconds, 60);
        assert!(time("tomorrow").is_err());
        assert_eq!(pair("a=b=c").unwrap(), ("a".into(), "b=c".into()));
        assert!(pair("=b").is_err() && pair("a").is_err());
    }
}
