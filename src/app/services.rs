//! Builds the gRPC services.

use std::sync::Arc;

use super::Surroundings;
use super::access::Access;
use super::observability::Observability;
use super::options::ServiceOptions;
use super::storage::Storage;
use crate::grpc::{KeyStoreHandler, ValidatorHandler};
use crate::server::Services;
use crate::service::{ChangeWatcher, KeyStoreService, UsageRecorder, ValidatorService};

/// Builds the services over `storage`, whose callers authenticate with `access`.
pub(super) fn build(
    options: &ServiceOptions,
    surroundings: &Surroundings,
    storage: &Storage,
    usage: &Arc<UsageRecorder>,
    access: &Access,
    observability: &Observability,
) -> Services {
    let (stack, metrics) = (&storage.stack, &observability.metrics);
    let validator = ValidatorService::new(
        Arc::clone(&stack.source),
        Arc::clone(&stack.knowledge),
        options.max_staleness,
        Arc::clone(&options.key_format),
        Arc::clone(&surroundings.clock),
        Arc::clone(usage),
    )
    .with_metrics(metrics.validations.clone());
    let watcher =
        ChangeWatcher::new(stack.backend.feed.clone(), stack.feed.clone(), Arc::clone(&stack.knowledge));
    let key_store = KeyStoreService::new(
        &stack.backend,
        Arc::clone(&options.key_format),
        Arc::clone(&surroundings.clock),
        Arc::clone(&surroundings.entropy),
    );
    let (key_store_auth, validator_auth) = access.authenticators(&validator);
    Services {
        validator: ValidatorHandler::new(validator, watcher, validator_auth.clone(), options.min_staleness),
        key_store: KeyStoreHandler::new(key_store).with_refused_imports(metrics.refused_imports.clone()),
        key_store_auth,
        validator_auth,
        validator_access: options.validator_access,
        health: observability.health.reporter(),
        has_reflection: options.has_reflection,
    }
}
