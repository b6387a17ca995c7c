//! What was heard and is not written yet, for kube-proxy's metrics of changes. Owned by the main loop's state.

use std::{collections::HashSet, time::Duration};

use super::KubeProxyMetrics;
use crate::{
    health::Moment,
    model::{Change, Event, Family, LastChange, ServiceName, Touched},
};

/// Times of changes that wait to be written; more are not measured.
const TRIGGERS: usize = 65_536;

#[derive(Debug)]
pub struct Changes {
    /// Changes from before this are not measured: they waited for the agent to start.
    started: Moment,
    services: HashSet<ServiceName>,
    endpoints: HashSet<ServiceName>,
    triggers: Vec<(Family, u64)>,
}

/// The part of an event that is counted, taken before it is used up.
#[derive(Clone, Copy, Debug)]
pub struct Counted(Option<Kind>);

#[derive(Clone, Copy, Debug)]
enum Kind {
    Service,
    Slice(Option<(Family, u64)>),
}

impl Changes {
    pub fn new(started: Moment) -> Self {
        Self { started, services: HashSet::new(), endpoints: HashSet::new(), triggers: Vec::new() }
    }

    pub fn of(&self, event: &Event) -> Counted {
        Counted(match event {
            Event::Service(_) => Some(Kind::Service),
            Event::Slice(Change::Applied(slice)) => {
                let LastChange(at) = slice.last_change;
                let at = at.filter(|at| *at > self.started.wall_ns);
                Some(Kind::Slice(at.map(|at| (slice.family, at))))
            }
            // kube-proxy, too, measures no removal.
            Event::Slice(Change::Deleted(_)) => Some(Kind::Slice(None)),
            _ => None,
        })
    }

    /// An event that touched nothing was no change.
    pub fn note(&mut self, counted: Counted, touched: &Touched, metrics: &KubeProxyMetrics) {
        let Some(kind) = counted.0.filter(|_| !touched.services.is_empty()) else { return };
        match kind {
            Kind::Service => {
                metrics.changed(1, 0);
                self.services.extend(touched.services.iter().cloned());
            }
            Kind::Slice(trigger) => {
                metrics.changed(0, 1);
                self.endpoints.extend(touched.services.iter().cloned());
                if self.triggers.len() < TRIGGERS {
                    self.triggers.extend(trigger);
                }
            }
        }
        metrics.pending(self.services.len(), self.endpoints.len());
    }

    /// Everything heard is in the maps.
    pub fn written(&mut self, now: Moment, metrics: &KubeProxyMetrics) {
        for (family, at) in self.triggers.drain(..) {
            metrics.programmed(family, Duration::from_nanos(now.wall_ns.saturating_sub(at)));
        }
        self.services = HashSet::new();
        self.endpoints = HashSet::new();
        metrics.pending(0, 0);
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::{
        metrics::{Metrics, text::encode},
        model::{EndpointSlice, SliceKey},
    };

    const SECOND: u64 = 1_000_000_000;

    fn at(seconds: u64) -> Moment {
        Moment { boot_ns: seconds * SECOND, wall_ns: seconds * SECOND }
    }

    fn slice(changed_s: u64) -> Event {
        Event::Slice(Change::Applied(EndpointSlice {
            name: "web-1".into(),
            service: ServiceName::new("default", "web"),
            family: Family::V6,
            ports: Vec::new(),
            endpoints: Vec::new(),
            last_change: LastChange(Some(changed_s * SECOND)),
        }))
    }

    #[test]
    fn changes_wait_until_they_are_written() {
        let metrics = Metrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let shows = |line: &str| {
            let text = encode(&registry).unwrap();
            assert!(text.lines().any(|it| it == line), "{line} is not in {text}");
        };
        let touched = Touched { services: [ServiceName::new("default", "web")].into(), ..Touched::default() };
        let mut changes = Changes::new(at(100));
        let key = SliceKey { namespace: "default".into(), name: "web-1".into() };
        // The first is older than the agent.
        for event in [slice(50), slice(200), Event::Slice(Change::Deleted(key))] {
            changes.note(changes.of(&event), &touched, metrics.kube_proxy());
        }
        let gone = Event::Service(Change::Deleted(ServiceName::new("default", "web")));
        changes.note(changes.of(&gone), &Touched::default(), metrics.kube_proxy());
        shows("kubeproxy_sync_proxy_rules_endpoint_changes_total 3");
        shows("kubeproxy_sync_proxy_rules_endpoint_changes_pending 1");
        shows("kubeproxy_sync_proxy_rules_service_changes_total 0");
        changes.written(at(203), metrics.kube_proxy());
        shows("kubeproxy_sync_proxy_rules_endpoint_changes_pending 0");
        shows("kubeproxy_network_programming_duration_seconds_sum{ip_family=\"IPv6\"} 3.0");
        shows("kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 0");
    }
}
