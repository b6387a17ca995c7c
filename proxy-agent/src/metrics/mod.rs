//! What the agent counts, as a registry that `health` serves. The main loop counts into [`Metrics`]; what stands in the kernel
//! is read at each scrape.

mod changes;
mod dataplane;
mod flows;
mod kube_proxy;
mod process;
mod tables;
pub mod text;
mod walk;

pub use changes::Changes;
pub use kube_proxy::{KubeProxyMetrics, Pass};
pub use tables::TableCounts;

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::{
    desired::Warning,
    loader::Pins,
    model::{Skip, SkipReason},
    reconcile::Conflict,
};

use dataplane::DataplaneCollector;
use process::ProcessCollector;

/// Why a frontend is refused: `Conflict`'s and `Warning`'s words.
const REFUSALS: [&str; 7] =
    ["taken", "service-first", "cluster-ip", "endpoint", "protected-port", "not-allowed", "forbidden-address"];

/// The one label of a counter of refusals.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    pub reason: &'static str,
}

/// The counters. A clone counts into the same.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    invalid_objects: Family<ReasonLabel, Counter>,
    refused_frontends: Family<ReasonLabel, Counter>,
    kube_proxy: KubeProxyMetrics,
    tables: Arc<Mutex<TableCounts>>,
}

impl Metrics {
    /// Every reason is there from the start with 0, so that a rate can be computed of its first occurrence.
    pub fn register(&self, registry: &mut Registry) {
        self.kube_proxy.register(registry);
        for reason in SkipReason::ALL {
            drop(self.invalid_objects.get_or_create(&ReasonLabel { reason: reason.as_str() }));
        }
        for reason in REFUSALS {
            drop(self.refused_frontends.get_or_create(&ReasonLabel { reason }));
        }
        registry.register(
            "weir_invalid_objects",
            "Malformed objects, or parts of them, that are not programmed; the log names each",
            self.invalid_objects.clone(),
        );
        registry.register(
            "weir_refused_frontends",
            "Frontends that a Service or Pod asks for and does not get; the log names each",
            self.refused_frontends.clone(),
        );
    }

    /// Everything there is: the above, what stands below the pins, and the process. `snat_ports` is the size of the range.
    pub fn register_all(&self, registry: &mut Registry, pins: &Pins, snat_ports: u32) {
        self.register(registry);
        let dataplane = DataplaneCollector::new(pins.clone(), self.tables.clone(), snat_ports);
        registry.register_collector(Box::new(dataplane));
        registry.register_collector(Box::new(ProcessCollector::new()));
    }

    /// What the tables hold that the agent fills.
    pub fn set_tables(&self, counts: TableCounts) {
        for (family, (internal, external)) in &counts.no_local {
            self.kube_proxy.no_local_endpoints(family, *internal, *external);
        }
        *self.tables.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }

    pub fn kube_proxy(&self) -> &KubeProxyMetrics {
        &self.kube_proxy
    }

    pub fn count_skips(&self, skips: &[Skip]) {
        for skip in skips {
            self.invalid_objects.get_or_create(&ReasonLabel { reason: skip.reason.as_str() }).inc();
        }
    }

    pub fn count_conflicts(&self, conflicts: &[Conflict]) {
        for conflict in conflicts {
            self.refused_frontends.get_or_create(&ReasonLabel { reason: conflict.reason.as_str() }).inc();
        }
    }

    pub fn count_warning(&self, warning: &Warning) {
        self.refused_frontends.get_or_create(&ReasonLabel { reason: warning.as_str() }).inc();
    }

    #[must_use]
    pub fn invalid_objects(&self, reason: SkipReason) -> u64 {
        self.invalid_objects.get_or_create(&ReasonLabel { reason: reason.as_str() }).get()
    }

    /// `2 invalid-ip, 1 malformed`; empty if nothing was skipped so far.
    #[must_use]
    pub fn invalid_in_words(&self) -> String {
        let mut text = String::new();
        for reason in SkipReason::ALL {
            let count = self.invalid_objects(reason);
            if count > 0 {
                let comma = if text.is_empty() { "" } else { ", " };
                // Writing to a string does not fail.
                let _ = write!(text, "{comma}{count} {}", reason.as_str());
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::model::ObjectRef;

    #[test]
    fn counts_by_reason_in_the_registry_and_in_words() {
        let metrics = Metrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        assert_eq!(metrics.invalid_in_words(), "");
        let skip = |reason| Skip {
            object: ObjectRef { kind: "Service", namespace: "default".into(), name: "web".into() },
            field: String::new(),
            got: String::new(),
            reason,
        };
        metrics.count_skips(&[skip(SkipReason::Malformed), skip(SkipReason::InvalidIp), skip(SkipReason::InvalidIp)]);
        assert_eq!(metrics.invalid_in_words(), "1 malformed, 2 invalid-ip");
        let mut text = String::new();
        encode(&mut text, &registry).expect("text");
        assert!(text.contains("weir_invalid_objects_total{reason=\"invalid-ip\"} 2"), "{text}");
        assert!(text.contains("weir_invalid_objects_total{reason=\"duplicate-port\"} 0"), "{text}");
    }
}
