//! Limits the calls in flight. Further calls are rejected at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus_client::metrics::gauge::Gauge;
use tonic::Status;

use crate::grpc::methods::{Effect, Method, Service};
use crate::grpc::overloaded;
use crate::telemetry::CallMetrics;

/// Divisor of the maximum number of calls. `KeyStore` has the quotient as slots for changes, and as many
/// again for reads.
const KEY_STORE_DIVISOR: usize = 10;

/// The slots of calls in flight. Validations can't exhaust the slots of administrators, and calls that read
/// can't exhaust the slots for changes.
#[derive(Clone, Debug)]
pub(super) struct CallSlots {
    changes: SlotLimit,
    reads: SlotLimit,
    others: SlotLimit,
}

/// The slots of one kind of calls.
#[derive(Clone, Debug)]
struct SlotLimit {
    in_flight: Arc<AtomicUsize>,
    max: usize,
    gauge: Gauge,
}

/// The slot of a call. Dropping it frees the slot.
#[derive(Debug)]
pub(super) struct CallSlot {
    in_flight: Arc<AtomicUsize>,
    gauge: Gauge,
}

impl SlotLimit {
    fn new(max: usize, gauge: &Gauge) -> Self {
        Self { in_flight: Arc::default(), max, gauge: gauge.clone() }
    }
}

impl CallSlots {
    /// Creates slots for `max` calls. In addition, calls of `KeyStore` that make changes get a tenth of that
    /// number, and those that read get another tenth. `metrics` has gauges of the slots in use.
    pub(super) fn new(max: usize, metrics: &CallMetrics) -> Self {
        let share = (max / KEY_STORE_DIVISOR).max(1);
        Self {
            changes: SlotLimit::new(share, metrics.key_store_running()),
            reads: SlotLimit::new(share, metrics.key_store_running()),
            others: SlotLimit::new(max, metrics.running()),
        }
    }

    /// Takes a slot for a call of `method`. Returns `None` for health checks, which are not limited.
    ///
    /// # Errors
    /// Returns `RESOURCE_EXHAUSTED` if all slots are taken.
    pub(super) fn take(&self, method: Option<&Method>) -> Result<Option<CallSlot>, Status> {
        let limit = match method.map(|method| method.service) {
            Some(Service::Health) => return Ok(None),
            Some(Service::KeyStore) => match method.map(|method| method.effect) {
                Some(Effect::Changes) => &self.changes,
                Some(Effect::Reads) | None => &self.reads,
            },
            Some(Service::Validator | Service::Reflection) | None => &self.others,
        };
        let before = limit.in_flight.fetch_add(1, Ordering::Relaxed);
        limit.gauge.inc();
        let slot = CallSlot { in_flight: Arc::clone(&limit.in_flight), gauge: limit.gauge.clone() };
        if before < limit.max { Ok(Some(slot)) } else { Err(overloaded()) }
    }
}

impl Drop for CallSlot {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::methods::VALIDATE;

    #[test]
    fn reads_changes_and_validations_have_separate_slots() {
        let [gauge, key_store] = [(); 2].map(|()| Gauge::default());
        let limit = |max| SlotLimit::new(max, &key_store);
        let slots = CallSlots { changes: limit(1), reads: limit(1), others: SlotLimit::new(2, &gauge) };
        let validate = Method::of(VALIDATE);
        let [reads, changes] =
            ["GetKey", "RevokeKey"].map(|it| Method::of(&format!("/keyvouch.v1.KeyStore/{it}")));
        let health = Method::of("/grpc.health.v1.Health/Check");
        let first = slots.take(validate).unwrap();
        let _second = slots.take(None).unwrap();
        assert_eq!(slots.take(validate).unwrap_err().code(), tonic::Code::ResourceExhausted);
        let _third = slots.take(reads).unwrap();
        slots.take(reads).unwrap_err();
        let _fourth = slots.take(changes).unwrap();
        slots.take(changes).unwrap_err();
        assert!(slots.take(health).unwrap().is_none());
        drop(first);
        slots.take(validate).unwrap();
        assert_eq!((gauge.get(), key_store.get()), (1, 2));
    }
}
