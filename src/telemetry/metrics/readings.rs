//! Gauges whose values are read when metrics are collected.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// A gauge value that is read when metrics are collected.
pub(crate) struct Reading {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) unit: Option<Unit>,
    pub(crate) labels: Vec<(&'static str, String)>,
    pub(crate) value: f64,
}

/// A function that returns all readings.
pub(crate) type Readings = dyn Fn() -> Vec<Reading> + Send + Sync;

/// Collects the readings. Each name is declared once.
pub(super) struct ReadingCollector(pub(super) Box<Readings>);

impl fmt::Debug for ReadingCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReadingCollector")
    }
}

impl Collector for ReadingCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let readings = (self.0)();
        for of_one in readings.chunk_by(|one, next| one.name == next.name) {
            let Reading { name, help, unit, .. } = &of_one[0];
            let gauge = ConstGauge::new(of_one[0].value);
            let kind = prometheus_client::metrics::MetricType::Gauge;
            let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
            if of_one[0].labels.is_empty() {
                gauge.encode(metric)?;
                continue;
            }
            for reading in of_one {
                let labels: Vec<_> =
                    reading.labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
                ConstGauge::new(reading.value).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
