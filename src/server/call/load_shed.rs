//! Limits the calls in flight. Further calls are rejected at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus_client::metrics::gauge::Gauge;
use tonic::Status;

use crate::grpc::methods::{Method, Service};
use crate::grpc::overloaded;
use crate::telemetry::CallMetrics;

/// Divisor of the maximum number of calls. `KeyStore` has the quotient as slots for changes, and as many
/// again for reads.
const ADMINISTRATION_SHARE: usize = 10;

/// The slots of calls in flight. Validations can't exhaust the slots of administrators, and calls that read
/// can't exhaust the slots for changes.
#[derive(Clone, Debug)]
pub(super) struct CallSlots {
    changes: Lane,
    readings: Lane,
    others: Lane,
}

#[derive(Clone, Debug)]
struct Lane {
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

impl Lane {
    fn new(max: usize, gauge: &Gauge) -> Self {
        Self { in_flight: Arc::default(), max, gauge: gauge.clone() }
    }
}

impl CallSlots {
    /// Creates slots for `max` calls. In addition, calls of `KeyStore` that make changes get a tenth of that
    /// number, and those that read get another tenth. `metrics` has gauges of the slots in use.
    pub(super) fn new(max: usize, metrics: &CallMetrics) -> Self {
        let share = (max / ADMINISTRATION_SHARE).max(1);
        Self {
            changes: Lane::new(share, metrics.administering()),
            readings: Lane::new(share, metrics.administering()),
            others: Lane::new(max, metrics.running()),
        }
    }

    /// Takes a slot for a call of `method`. Returns `None` for health checks, which are not limited.
    ///
    /// # Errors
    /// Returns `RESOURCE_EXHAUSTED` if all slots are taken.
    pub(super) fn take(&self, method: Option<&Method>) -> Result<Option<CallSlot>, Status> {
        let lane = match method.map(|method| method.service) {
            Some(Service::Health) => return Ok(None),
            Some(Service::KeyStore) if method.is_some_and(Method::makes_changes) => &self.changes,
            Some(Service::KeyStore) => &self.readings,
            Some(Service::Validator | Service::Reflection) | None => &self.others,
        };
        let before = lane.in_flight.fetch_add(1, Ordering::Relaxed);
        lane.gauge.inc();
        let slot = CallSlot { in_flight: Arc::clone(&lane.in_flight), gauge: lane.gauge.clone() };
        if before < lane.max { Ok(Some(slot)) } else { Err(overloaded()) }
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
    fn each_service_has_its_own_slots() {
        let [gauge, administering] = [(); 2].map(|()| Gauge::default());
        let lane = |max| Lane::new(max, &administering);
        let slots = CallSlots { changes: lane(1), readings: lane(1), others: Lane::new(2, &gauge) };
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
        assert_eq!((gauge.get(), administering.get()), (1, 2));
    }
}
