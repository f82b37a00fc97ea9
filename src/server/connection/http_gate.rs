//! Rejects HTTP requests that are not gRPC calls.
//!
//! The gRPC protocol over HTTP/2 requires `POST` and a content type that begins with `application/grpc`
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>). Its responses have HTTP status 200
//! whatever the status of the call. A gateway that authorizes by HTTP status and uses this server would
//! therefore admit every request. A browser can also be made to send a `POST` of `text/plain` with its user's
//! client certificate. So any other request is rejected here, before authentication.

use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use tonic::body::Body;

const GRPC: &str = "application/grpc";

/// Returns the response to a request that is not a gRPC call, or `None` for a call.
pub(super) fn rejection<B: hyper::body::Body>(request: &Request<B>) -> Option<Response<Body>> {
    if request.method() != Method::POST {
        let text = "this server answers gRPC calls, which are sent by POST\n";
        let text = if request.method() == Method::HEAD { "" } else { text };
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, text);
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return Some(response);
    }
    if !request.headers().get(CONTENT_TYPE).is_some_and(is_grpc) {
        let text = "this server answers gRPC calls, which have the content-type application/grpc\n";
        return Some(plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
    }
    // Envoy's `ext_authz` can forward the client's method, content type and path, but sends no body.
    if request.body().is_end_stream() {
        let text = "expected a gRPC message in the request body\n";
        return Some(plain(StatusCode::BAD_REQUEST, text));
    }
    None
}

/// Returns whether the content type is `application/grpc`, with or without a codec
/// (`application/grpc+proto`). `application/grpc-web` is another protocol.
fn is_grpc(content_type: &HeaderValue) -> bool {
    let Some((start, rest)) = content_type.as_bytes().split_at_checked(GRPC.len()) else { return false };
    start.eq_ignore_ascii_case(GRPC.as_bytes()) && matches!(rest.first(), None | Some(b'+' | b';'))
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::new(axum::body::Body::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(method: &str, content_type: Option<&str>) -> Option<u16> {
        let mut request = Request::builder().method(method).uri("/keyvouch.v1.Validator/Validate");
        if let Some(content_type) = content_type {
            request = request.header(CONTENT_TYPE, content_type);
        }
        let body = axum::body::Body::from("message");
        rejection(&request.body(body).unwrap()).map(|response| response.status().as_u16())
    }

    #[test]
    fn a_request_without_a_body_is_rejected() {
        let request = Request::post("/").header(CONTENT_TYPE, GRPC).body(axum::body::Body::empty());
        assert_eq!(rejection(&request.unwrap()).unwrap().status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn the_response_to_head_has_no_body() {
        let request = Request::head("/").body(axum::body::Body::empty()).unwrap();
        let response = rejection(&request).unwrap();
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert!(hyper::body::Body::is_end_stream(response.body()));
    }

    #[test]
    fn only_a_post_with_a_grpc_content_type_is_a_call() {
        for content_type in
            ["application/grpc", "application/grpc+proto", "Application/gRPC", "application/grpc;x=y"]
        {
            assert_eq!(status("POST", Some(content_type)), None, "{content_type}");
            for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"] {
                assert_eq!(status(method, Some(content_type)), Some(405), "{method}");
            }
        }
        for content_type in [
            "",
            "text/plain",
            "application/json",
            "application/x-www-form-urlencoded",
            "application/grp",
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/grpcx",
            "text/plain; application/grpc",
        ] {
            assert_eq!(status("POST", Some(content_type)), Some(415), "{content_type}");
        }
        assert_eq!(status("POST", None), Some(415));
    }
}
