//! kube-proxy's metrics, with its names, types, labels and meaning, for dashboards and alerts that exist. Where it counts per
//! proxier, of which it has one per family, Weir counts its one pass for both.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets, linear_buckets},
    },
    registry::Registry,
};

use crate::model;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct FamilyLabel {
    pub(super) ip_family: &'static str,
}

const FAMILIES: [FamilyLabel; 2] = [FamilyLabel { ip_family: "IPv4" }, FamilyLabel { ip_family: "IPv6" }];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PolicyLabels {
    ip_family: &'static str,
    traffic_policy: &'static str,
}

/// Seconds since 1970, as a float.
type Time = Gauge<f64, std::sync::atomic::AtomicU64>;
type Durations = Family<FamilyLabel, Histogram, Buckets>;

/// How a family of histograms makes a new member.
#[derive(Clone, Debug)]
pub(super) struct Buckets(Arc<[f64]>);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// A clone counts into the same.
#[derive(Clone, Debug)]
pub struct KubeProxyMetrics {
    sync_duration: Durations,
    full_sync_duration: Durations,
    partial_sync_duration: Durations,
    last_sync: Family<FamilyLabel, Time>,
    last_queued: Family<FamilyLabel, Time>,
    programming_duration: Durations,
    endpoint_changes: Counter,
    endpoint_changes_pending: Gauge,
    service_changes: Counter,
    service_changes_pending: Gauge,
    no_local_endpoints: Family<PolicyLabels, Gauge>,
    healthz: Family<CodeLabel, Counter>,
    livez: Family<CodeLabel, Counter>,
}

impl Default for KubeProxyMetrics {
    fn default() -> Self {
        let sync = || Durations::new_with_constructor(Buckets(exponential_buckets(0.001, 2.0, 15).collect()));
        let programming: Arc<[f64]> = [0.0]
            .into_iter()
            .chain(linear_buckets(0.25, 0.25, 2))
            .chain(linear_buckets(1.0, 1.0, 59))
            .chain(linear_buckets(60.0, 5.0, 12))
            .chain(linear_buckets(120.0, 30.0, 7))
            .collect();
        Self {
            sync_duration: sync(),
            full_sync_duration: sync(),
            partial_sync_duration: sync(),
            last_sync: Family::default(),
            last_queued: Family::default(),
            programming_duration: Durations::new_with_constructor(Buckets(programming)),
            endpoint_changes: Counter::default(),
            endpoint_changes_pending: Gauge::default(),
            service_changes: Counter::default(),
            service_changes_pending: Gauge::default(),
            no_local_endpoints: Family::default(),
            healthz: Family::default(),
            livez: Family::default(),
        }
    }
}

/// How much a pass looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Every Service.
    Full,
    /// Those that were touched.
    Partial,
}

impl KubeProxyMetrics {
    /// Every label is there from the start, so that a rate can be computed of its first occurrence.
    pub(super) fn register(&self, registry: &mut Registry) {
        for code in ["200", "503"] {
            drop(self.healthz.get_or_create(&CodeLabel { code }));
            drop(self.livez.get_or_create(&CodeLabel { code }));
        }
        for family in &FAMILIES {
            for durations in self.durations() {
                drop(durations.get_or_create(family));
            }
            self.no_local_endpoints(family.ip_family, 0, 0);
            drop(self.last_sync.get_or_create(family));
            drop(self.last_queued.get_or_create(family));
        }
        self.register_passes(registry);
        self.register_changes(registry);
        let registry = registry.sub_registry_with_prefix("kubeproxy_proxy");
        registry.register("healthz", "Answers of /healthz by code", self.healthz.clone());
        registry.register("livez", "Answers of /livez by code", self.livez.clone());
    }

    fn durations(&self) -> [&Durations; 4] {
        [&self.sync_duration, &self.full_sync_duration, &self.partial_sync_duration, &self.programming_duration]
    }

    fn register_passes(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("kubeproxy");
        registry.register(
            "sync_proxy_rules_duration_seconds",
            "How long it took to write what was heard to the maps",
            self.sync_duration.clone(),
        );
        registry.register(
            "sync_full_proxy_rules_duration_seconds",
            "The same, for passes over every Service (the first one, and when the node has changed)",
            self.full_sync_duration.clone(),
        );
        registry.register(
            "sync_partial_proxy_rules_duration_seconds",
            "The same, for passes over the Services that were touched",
            self.partial_sync_duration.clone(),
        );
        registry.register(
            "sync_proxy_rules_last_timestamp_seconds",
            "When everything heard was last in the maps",
            self.last_sync.clone(),
        );
        registry.register(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When something was last heard that had to be written",
            self.last_queued.clone(),
        );
        registry.register(
            "network_programming_duration_seconds",
            "From the change of a Pod or Service, as the EndpointSlice names its time, until it is in the maps",
            self.programming_duration.clone(),
        );
    }

    fn register_changes(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("kubeproxy_sync_proxy_rules");
        registry.register("endpoint_changes", "EndpointSlices that changed", self.endpoint_changes.clone());
        registry.register(
            "endpoint_changes_pending",
            "Services whose endpoints changed and are not written yet",
            self.endpoint_changes_pending.clone(),
        );
        registry.register("service_changes", "Services that changed", self.service_changes.clone());
        registry.register(
            "service_changes_pending",
            "Services that changed and are not written yet",
            self.service_changes_pending.clone(),
        );
        registry.register(
            "no_local_endpoints_total",
            "Services with a Local traffic policy and no endpoint on this node, while there are some elsewhere",
            self.no_local_endpoints.clone(),
        );
    }

    pub fn queued(&self) {
        let now = unix_seconds();
        for family in &FAMILIES {
            self.last_queued.get_or_create(family).set(now);
        }
    }

    /// A pass has ended; `complete` if nothing that it had to write waits for another attempt.
    pub fn synced(&self, took: Duration, pass: Pass, complete: bool) {
        let of_pass = match pass {
            Pass::Full => &self.full_sync_duration,
            Pass::Partial => &self.partial_sync_duration,
        };
        let now = unix_seconds();
        for family in &FAMILIES {
            self.sync_duration.get_or_create(family).observe(took.as_secs_f64());
            of_pass.get_or_create(family).observe(took.as_secs_f64());
            if complete {
                self.last_sync.get_or_create(family).set(now);
            }
        }
    }

    /// Changes that came, and Services that have some which are not written.
    pub fn changed(&self, services: u64, slices: u64) {
        self.service_changes.inc_by(services);
        self.endpoint_changes.inc_by(slices);
    }

    pub fn pending(&self, services: usize, endpoints: usize) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.service_changes_pending.set(number(services));
        self.endpoint_changes_pending.set(number(endpoints));
    }

    /// `since` the time that the EndpointSlice names, until now. Clocks of two machines may differ: never below zero.
    pub fn programmed(&self, family: model::Family, since: Duration) {
        let [v4, v6] = &FAMILIES;
        let label = if family == model::Family::V4 { v4 } else { v6 };
        self.programming_duration.get_or_create(label).observe(since.as_secs_f64());
    }

    /// Services with a Local policy and without a local endpoint.
    pub fn no_local_endpoints(&self, ip_family: &'static str, internal: usize, external: usize) {
        for (traffic_policy, count) in [("internal", internal), ("external", external)] {
            let labels = PolicyLabels { ip_family, traffic_policy };
            self.no_local_endpoints.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    pub fn count_healthz(&self, ok: bool) {
        self.healthz.get_or_create(&code(ok)).inc();
    }

    pub fn count_livez(&self, ok: bool) {
        self.livez.get_or_create(&code(ok)).inc();
    }
}

fn code(ok: bool) -> CodeLabel {
    CodeLabel { code: if ok { "200" } else { "503" } }
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
