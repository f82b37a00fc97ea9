//! One thread with a single-threaded runtime that serves the connections it is handed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tower::layer::util::{Identity, Stack};

use super::connection::{Accepted, Connection, Place};
use super::{CallLayer, Services};
use crate::grpc::pb::FILE_DESCRIPTOR_SET;
use crate::grpc::pb::key_store_server::KeyStoreServer;
use crate::grpc::pb::validator_server::ValidatorServer;

/// The largest message that `Validator` takes: far more than a key and 64 scopes.
const MAX_VALIDATE_BYTES: usize = 64 * 1024;
/// The largest message that `KeyStore` takes: more than the largest key that the domain allows.
const MAX_ADMIN_BYTES: usize = 256 * 1024;
/// A peer that is gone without a word is noticed after an interval and a time-out.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

type CallRouter = Router<Stack<CallLayer, Identity>>;

/// Hands connections to a worker.
#[derive(Clone, Debug)]
pub(super) struct WorkerHandle {
    connections: mpsc::UnboundedSender<(Accepted, Place)>,
    load: Arc<AtomicUsize>,
}

impl WorkerHandle {
    /// How many connections the worker has.
    pub(super) fn connections(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// Gives it one more. While it is ending, the connection is closed instead.
    pub(super) fn hand_over(&self, accepted: Accepted, permit: OwnedSemaphorePermit) {
        let place = Place::take(&self.load, permit);
        // The queue needs no bound of its own: every entry holds one of the server's permits.
        let _ = self.connections.send((accepted, place));
    }
}

/// A running worker.
#[derive(Debug)]
pub(super) struct Worker {
    handle: WorkerHandle,
}

impl Worker {
    /// Starts a worker. Its thread ends when all its connections have, after the draining began, or when they are cut.
    pub(super) fn start(router: CallRouter, handshake_timeout: Duration, life: Life) -> io::Result<Self> {
        let (connections, handed_over) = mpsc::unbounded_channel();
        let load = Arc::new(AtomicUsize::new(0));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name(format!("worker-{}", life.number)).spawn(move || {
            let incoming = UnboundedReceiverStream::new(handed_over)
                .map(move |handed_over| Connection::adopt(handed_over, handshake_timeout));
            let serving = router.serve_with_incoming_shutdown(incoming, life.reaches(Phase::Drain));
            runtime.block_on(async {
                tokio::select! {
                    served = serving => if let Err(error) = served {
                        tracing::error!(%error, worker = life.number, "a worker failed");
                    },
                    () = life.reaches(Phase::Cut) => {}
                }
            });
            // Connections are tasks of the runtime: it takes them with it.
            drop(runtime);
            drop(life);
        })?;
        Ok(Self { handle: WorkerHandle { connections, load } })
    }

    pub(super) fn handle(&self) -> WorkerHandle {
        self.handle.clone()
    }
}

/// What all workers are to do. Each phase includes the ones before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Serve,
    /// Take nothing new, and let connections end.
    Drain,
    /// End at once.
    Cut,
}

/// How a worker learns when to end, and says that it did: dropped at the end of its thread, also by a panic.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) number: usize,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) ended: mpsc::Sender<usize>,
}

impl Life {
    fn reaches(&self, phase: Phase) -> impl Future<Output = ()> + use<> {
        let mut current = self.phase.clone();
        async move {
            // An error means that the server is gone, which is a reason to end as well.
            let _ = current.wait_for(|&current| current >= phase).await;
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if *self.phase.borrow() == Phase::Serve {
            // If the server is gone already, nobody needs to know.
            let _ = self.ended.try_send(self.number);
        }
    }
}

/// All services, with the layers that every call goes through.
pub(super) fn router(
    services: &Services,
    layer: CallLayer,
    max_streams: u32,
) -> Result<CallRouter, tonic_reflection::server::Error> {
    let validator =
        ValidatorServer::new(services.validator.clone()).max_decoding_message_size(MAX_VALIDATE_BYTES);
    let key_store =
        KeyStoreServer::new(services.key_store.clone()).max_decoding_message_size(MAX_ADMIN_BYTES);
    let health = tonic_health::server::HealthService::from_health_reporter(services.health.clone());
    let health = tonic_health::pb::health_server::HealthServer::new(health);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let router = Server::builder()
        .max_concurrent_streams(Some(max_streams))
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(layer)
        .add_service(validator)
        .add_service(InterceptedService::new(key_store, services.admin_auth.clone()))
        .add_service(health)
        .add_service(reflection().build_v1()?)
        // Older clients know no other: Python's grpcio-reflection, Postman before 2023.
        .add_service(reflection().build_v1alpha()?);
    Ok(router)
}
