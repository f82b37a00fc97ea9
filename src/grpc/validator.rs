//! The service `Validator`.

use tonic::{Request, Response, Status};

use super::pb::validator_server::Validator;
use super::pb::{ValidateRequest, ValidateResponse};
use super::{convert, status};
use crate::domain::ScopeSet;
use crate::service::ValidatorService;

/// Answers `Validate`.
#[derive(Clone, Debug)]
pub struct ValidatorHandler {
    service: ValidatorService,
}

impl ValidatorHandler {
    /// Answers by `service`.
    #[must_use]
    pub fn new(service: ValidatorService) -> Self {
        Self { service }
    }
}

#[tonic::async_trait]
impl Validator for ValidatorHandler {
    async fn validate(
        &self,
        request: Request<ValidateRequest>,
    ) -> Result<Response<ValidateResponse>, Status> {
        let request = request.into_inner();
        let scope_match = convert::scope_match(request.scope_match).map_err(status::invalid_field)?;
        let required =
            ScopeSet::parse("required_scopes", request.required_scopes).map_err(status::invalid_field)?;
        let validation = self
            .service
            .validate(request.secret, &required, scope_match)
            .await
            .map_err(status::from_service)?;
        Ok(Response::new(convert::validate_response(validation)))
    }
}
