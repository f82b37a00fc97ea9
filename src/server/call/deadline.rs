//! The deadline of a call.

use std::time::Duration;

use http::{HeaderMap, Response};
use tonic::body::Body;

use crate::grpc::deadline_exceeded;

/// Returns the client's `grpc-timeout`, but `max` at most. An invalid timeout is ignored.
pub(super) fn of(headers: &HeaderMap, max: Duration) -> Duration {
    let timeout = headers.get("grpc-timeout").and_then(|timeout| timeout.to_str().ok()).and_then(parse);
    timeout.map_or(max, |timeout| timeout.min(max))
}

/// Returns the response, or the status `DEADLINE_EXCEEDED` after `timeout`.
pub(super) async fn within(
    timeout: Duration,
    response: impl Future<Output = Response<Body>>,
) -> Response<Body> {
    tokio::time::timeout(timeout, response).await.unwrap_or_else(|_| deadline_exceeded().into_http())
}

/// Parses a timeout of one to eight digits and a unit (gRPC over HTTP/2, "Timeout").
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_hours(number),
        "M" => Duration::from_mins(number),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};

    use super::*;

    #[tokio::test]
    async fn a_late_response_is_replaced_by_deadline_exceeded() {
        let response = within(Duration::from_millis(1), std::future::pending()).await;
        assert_eq!(Status::from_header_map(response.headers()).unwrap().code(), Code::DeadlineExceeded);
        let response = within(Duration::from_mins(1), async { Response::new(Body::empty()) }).await;
        assert!(Status::from_header_map(response.headers()).is_none());
    }

    #[test]
    fn clients_can_set_an_earlier_deadline() {
        let applied = |timeout: &'static str| {
            let headers = HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), timeout.parse().unwrap())]);
            of(&headers, Duration::from_secs(5))
        };
        assert_eq!(applied("1S"), Duration::from_secs(1));
        assert_eq!(applied("1M"), Duration::from_secs(5));
        assert_eq!(applied("soon"), Duration::from_secs(5));
    }

    #[test]
    fn a_timeout_has_one_to_eight_digits_and_a_unit() {
        for (text, timeout) in [
            ("1S", Some(Duration::from_secs(1))),
            ("99999999H", Some(Duration::from_hours(99_999_999))),
            ("5m", Some(Duration::from_millis(5))),
            ("7u", Some(Duration::from_micros(7))),
            ("100000000S", None),
            ("S", None),
            ("", None),
            ("1", None),
            ("-1S", None),
            ("1é", None),
        ] {
            assert_eq!(parse(text), timeout, "{text:?}");
        }
    }
}
