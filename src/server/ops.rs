//! Plain HTTP for those who look after the server: `/livez`, `/readyz`, `/startupz` and `/metrics`.

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::telemetry::Exposition;

/// What the server is fit for. Each includes the ones before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fitness {
    /// The process runs.
    #[default]
    Alive,
    /// It was ready once: the store was reached, and its change feed read.
    Started,
    /// It takes calls.
    Ready,
}

/// The bound address of the operators' endpoints.
#[derive(Debug)]
pub struct OpsListener(TcpListener);

impl OpsListener {
    /// Binds `address`.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        TcpListener::bind(address).await.map(Self)
    }

    /// The address, with the port that was taken.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Answers for ever.
    pub async fn serve(self, fitness: watch::Receiver<Fitness>, metrics: Exposition) -> io::Result<()> {
        let probe = |needed| {
            get(async move |State((fitness, _)): State<(watch::Receiver<Fitness>, Exposition)>| {
                let now = *fitness.borrow();
                if now >= needed {
                    (StatusCode::OK, "ok\n")
                } else {
                    (StatusCode::SERVICE_UNAVAILABLE, "not yet, or not any more\n")
                }
            })
        };
        let router = Router::new()
            .route("/livez", probe(Fitness::Alive))
            .route("/startupz", probe(Fitness::Started))
            .route("/readyz", probe(Fitness::Ready))
            .route("/metrics", get(expose))
            .with_state((fitness, metrics));
        axum::serve(self.0, router).await
    }
}

async fn expose(State((_, metrics)): State<(watch::Receiver<Fitness>, Exposition)>) -> impl IntoResponse {
    match metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, Exposition::CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
