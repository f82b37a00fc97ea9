//! The service `grpc.health.v1.Health`: tonic's service, with the response to unknown names that its protocol
//! demands of `Watch`.

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_health::server::{HealthReporter, HealthService};

/// Reports the health of the services.
#[derive(Debug)]
pub(super) struct HealthHandler(HealthService);

impl HealthHandler {
    /// Creates a handler that reports the statuses of `reporter`. All services are registered with it already.
    pub(super) fn new(reporter: HealthReporter) -> Self {
        Self(HealthService::from_health_reporter(reporter))
    }
}

#[async_trait]
impl Health for HealthHandler {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.0.check(request).await
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    /// Streams the status of a service. For an unknown service, the stream stays open after `SERVICE_UNKNOWN`
    /// (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>), and is held like any other one.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        match self.0.watch(request).await {
            Ok(statuses) => Ok(statuses.map(StreamExt::boxed)),
            Err(status) if status.code() == Code::NotFound => {
                let unknown = HealthCheckResponse { status: ServingStatus::ServiceUnknown.into() };
                // No service is registered later, so there is no further response.
                Ok(Response::new(stream::iter([Ok(unknown)]).chain(stream::pending()).boxed()))
            }
            Err(status) => Err(status),
        }
    }
}
