//! Calls of a server, without connections.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use http::{HeaderValue, Request};
use hyper::body::{Body as _, Bytes, Frame};
use tokio::runtime::Runtime;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service as _;

use crate::app::{App, Surroundings};
use crate::config::Config;
use crate::grpc::pb;
use crate::repository::MemoryRepository;
use crate::server::BufferedBody;

/// Timeout for the beginning of a response, far more than any needs.
const NEVER: Duration = Duration::from_secs(10);
/// Timeout for a part of a response, which may never arrive.
const PATIENCE: Duration = Duration::from_millis(20);
/// Maximum number of parts that are read of a response.
const MAX_PIECES: usize = 100;
/// Token of calls that are not about credentials.
const TOKEN: &str = "an-admin-token-for-the-fuzzers";
/// Flag in the first byte of a call, which makes its message the credential.
const IS_CREDENTIAL: u8 = 0x80;

/// A server in this process without connections. Calls go directly to its services.
#[derive(Debug)]
pub struct Server {
    runtime: Runtime,
    routes: Routes,
    pub(super) methods: Vec<String>,
}

impl Server {
    /// Creates a server with the memory backend.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "without a server there is nothing to fuzz")]
    pub fn new() -> Self {
        let build = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let mut config = Config::default();
            config.server.listen = vec!["127.0.0.1:0".into()];
            // The caches need a running server.
            config.cache.local.enabled = false;
            config.admin.tokens = vec![format!("fuzz:{TOKEN}").into()];
            let backend = MemoryRepository::new();
            let app =
                runtime.block_on(App::with_backend(&config.parse()?, Surroundings::default(), backend))?;
            anyhow::Ok(Self { routes: app.routes()?, methods: pb::paths(pb::FILE_DESCRIPTOR_SET), runtime })
        };
        build().unwrap_or_else(|error: anyhow::Error| panic!("{error:#}"))
    }

    /// Makes a call. The first byte selects the method, and the others are its message or its credential.
    pub fn call(&self, bytes: &[u8]) {
        self.answer(bytes);
    }

    /// Returns the bytes of the response to a call.
    pub(super) fn answer(&self, bytes: &[u8]) -> Vec<u8> {
        let Some((&method, message)) = bytes.split_first() else { return Vec::new() };
        let path = &self.methods[usize::from(method & !IS_CREDENTIAL) % self.methods.len()];
        let is_credential = method & IS_CREDENTIAL != 0;
        let (credential, message) =
            if is_credential { (message, &[][..]) } else { (TOKEN.as_bytes(), message) };
        let scheme: &[u8] = if is_credential { b"" } else { b"Bearer " };
        // HTTP/2 rejects bytes that are not a valid header value before they reach the services.
        let Ok(credential) = HeaderValue::from_bytes(&[scheme, credential].concat()) else {
            return Vec::new();
        };
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
        let piece = Bytes::from([&[0][..], &length, message].concat());
        let body = BufferedBody { pieces: [Ok(Frame::data(piece))].into(), rest: Body::empty() };
        let request = Request::post(format!("http://fuzz{path}"))
            .header("content-type", "application/grpc")
            .header("authorization", credential)
            .body(Body::new(body))
            .unwrap_or_else(|error| panic!("{error}"));
        let answer = async {
            let answer = match self.routes.clone().call(request).await {
                Ok(answer) => answer,
                Err(never) => match never {},
            };

            let (mut body, mut bytes) = (answer.into_body(), Vec::new());
            for _ in 0..MAX_PIECES {
                let piece = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
                // A watch has no end. It waits for changes that nobody makes here.
                let Ok(Some(Ok(piece))) = tokio::time::timeout(PATIENCE, piece).await else { break };
                bytes.extend(piece.into_data().unwrap_or_default());
            }
            bytes
        };
        let answer = self.runtime.block_on(async { tokio::time::timeout(NEVER, answer).await });
        answer.unwrap_or_else(|elapsed| panic!("{path}: {elapsed}"))
    }
}

impl Default for Server {
    fn default() -> Self {
        Self::new()
    }
}
