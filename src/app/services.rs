//! Builds the gRPC services.

use std::sync::Arc;

use super::Surroundings;
use super::access::Access;
use super::observability::Observability;
use super::storage::Storage;
use crate::config::Settings;
use crate::grpc::{KeyStoreHandler, ValidatorHandler};
use crate::server::Services;
use crate::service::{ChangeWatcher, KeyStoreService, UsageRecorder, ValidatorService};

/// Builds the services over `storage`, whose callers authenticate with `access`.
pub(super) fn build(
    settings: &Settings,
    surroundings: &Surroundings,
    storage: &Storage,
    usage: &Arc<UsageRecorder>,
    access: &Access,
    observability: &Observability,
) -> Services {
    let key_format = Arc::new(settings.keys.clone());
    let (stack, metrics) = (&storage.stack, &observability.metrics);
    let validator = ValidatorService::new(
        Arc::clone(&stack.source),
        Arc::clone(&stack.knowledge),
        settings.cache.stack.max_staleness,
        Arc::clone(&key_format),
        Arc::clone(&surroundings.clock),
        Arc::clone(usage),
    )
    .with_metrics(metrics.validations.clone());
    let watcher =
        ChangeWatcher::new(stack.backend.feed.clone(), stack.feed.clone(), Arc::clone(&stack.knowledge));
    let key_store = KeyStoreService::new(
        &stack.backend,
        key_format,
        Arc::clone(&surroundings.clock),
        Arc::clone(&surroundings.entropy),
    );
    let (key_store_auth, validator_auth) = access.authenticators(&validator);
    Services {
        validator: ValidatorHandler::new(
            validator,
            watcher,
            validator_auth.clone(),
            settings.cache.min_staleness,
        ),
        key_store: KeyStoreHandler::new(key_store, Arc::clone(&surroundings.stopwatch))
            .with_rejected_imports(metrics.rejected_imports.clone()),
        key_store_auth,
        validator_auth,
        validator_access: settings.validator_access,
        health: observability.health.reporter(),
        has_reflection: settings.server.has_reflection,
    }
}
