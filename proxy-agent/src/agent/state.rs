//! From events to the reconciler: the snapshot, the node's view and what is stale. Pure but for the reconciler's writes.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use proxy_common::abi::{ADDR_NODEPORT, BackendState, SocketEnding};

use crate::{
    dataplane::{Actual, Counted, Dataplane, DataplaneError},
    desired::{Facts, ServiceDesired, build_desired, build_host_ports},
    events::{Events, Reason, object_of},
    fault::{self, FaultPoint},
    health::{Checks, Moment, NodeSeen, ServiceCheck},
    metrics::{Changes, Metrics, TableCounts},
    model::{Event, ObjectRef, ServiceName, Snapshot, SourceKind, Touched},
    node::{NetChange, NodeView},
    reconcile::{Failure, NodeAddress, Reconciler, Report, Subject},
};

pub(super) struct State<D> {
    snapshot: Snapshot,
    pub(super) view: NodeView,
    reconciler: Reconciler<D>,
    settings: Settings,
    metrics: Metrics,
    events: Events,
    /// Services whose desired state has to be built again.
    stale: Touched,
    /// Which addresses each Service asked about when it was built, and the answers: a new pod's interface or route costs
    /// work only for the Services whose answers it changes.
    direct: HashMap<ServiceName, Vec<(IpAddr, bool)>>,
    own_addresses: Vec<IpAddr>,
    /// Interfaces that went since [`State::take_gone`].
    gone: Vec<u32>,
    /// The node's network was listed.
    node_seen: bool,
    node_stale: bool,
    /// The Services with a healthCheckNodePort.
    checks: Checks,
    /// Changed since [`State::take_checks`].
    checks_stale: bool,
    changes: Changes,
}

/// What the flags say.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    /// Empty: external addresses are accepted from everywhere.
    pub(super) external_ranges: Vec<IpNet>,
    /// Empty: the ServiceCIDR objects of the source.
    pub(super) service_cidrs: Vec<IpNet>,
}

/// What a sync did, for the log.
pub(super) struct Synced {
    pub(super) applied: usize,
    /// Every Service was looked at.
    pub(super) all: bool,
    /// True once: everything that the sources listed is in the maps.
    pub(super) first: bool,
}

impl<D: Dataplane> State<D> {
    pub(super) fn new(
        node_name: &str,
        view: NodeView,
        reconciler: Reconciler<D>,
        settings: Settings,
        metrics: Metrics,
    ) -> Self {
        let snapshot = Snapshot::new(node_name);
        Self {
            snapshot,
            view,
            reconciler,
            settings,
            metrics,
            events: Events::off(),
            stale: Touched::default(),
            direct: HashMap::new(),
            own_addresses: Vec::new(),
            gone: Vec::new(),
            node_seen: false,
            node_stale: false,
            checks: Checks::new(),
            checks_stale: true,
            changes: Changes::new(Moment::now()),
        }
    }

    /// Nobody is told without it.
    pub(super) fn report_to(&mut self, events: Events) {
        self.events = events;
    }

    /// The node's interfaces were listed.
    pub(super) fn is_node_listed(&self) -> bool {
        self.node_seen
    }

    pub(super) fn service_count(&self) -> usize {
        self.snapshot.services().len()
    }

    pub(super) fn backend_count(&self) -> usize {
        let actual = self.reconciler.mirror().actual();
        let serving = |state: BackendState| state == BackendState::Serving;
        actual.v4.backends.iter().filter(|it| serving(it.state)).count()
            + actual.v6.backends.iter().filter(|it| serving(it.state)).count()
    }

    pub(super) fn node_seen(&self) -> NodeSeen {
        match self.snapshot.node() {
            None => NodeSeen::Never,
            Some(node) if node.deleting || node.leaving => NodeSeen::Leaving,
            Some(_) => NodeSeen::Eligible,
        }
    }

    /// The Services with a healthCheckNodePort, once all are known and when they changed.
    pub(super) fn take_checks(&mut self) -> Option<Checks> {
        // What was heard and not looked at yet may be a Service's endpoints.
        let known = self.snapshot.is_synced() && self.stale.is_empty();
        let stale = known && std::mem::take(&mut self.checks_stale);
        stale.then(|| self.checks.clone())
    }

    fn note_check(&mut self, name: &ServiceName) {
        let facts = self.snapshot.node_facts();
        let check = self.snapshot.service(name);
        let check = check.and_then(|service| ServiceCheck::of(service, self.snapshot.slices_of(name), &facts.name));
        let before = match check {
            Some(check) => self.checks.insert(name.clone(), check),
            None => self.checks.remove(name),
        };
        self.checks_stale |= before != check;
    }

    /// Everything that the sources said is in the maps. What a full table has no room for does not count: it is named in the log
    /// and in the metrics, and neither time nor a restart would help it.
    pub(super) fn is_up_to_date(&self) -> bool {
        let waits = |failure: &Failure| !matches!(*failure.error, DataplaneError::Full { .. });
        self.snapshot.is_synced() && self.stale.is_empty() && !self.reconciler.status().failures.values().any(waits)
    }

    /// Everything heard is in the maps.
    pub(super) fn note_written(&mut self) {
        self.changes.written(Moment::now(), self.metrics.kube_proxy());
    }

    pub(super) fn table_counts(&self) -> TableCounts {
        TableCounts::of(self.actual(), self.service_count(), self.reconciler.status().failures.len())
    }

    /// What stands in the maps that the agent fills.
    pub(super) fn actual(&self) -> &Actual {
        self.reconciler.mirror().actual()
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The ranges that a flag names, once at start; without the flag, those that the source has listed.
    pub(super) fn sync_service_cidrs(&mut self, now: Instant) -> usize {
        let named = Some(&self.settings.service_cidrs).filter(|cidrs| !cidrs.is_empty()).cloned();
        let Some(cidrs) = named.or_else(|| self.snapshot.service_cidrs()) else { return 0 };
        // Ranges that lie in each other or side by side are one.
        let report = self.reconciler.set_service_cidrs(IpNet::aggregate(&cidrs), now);
        self.log(&report);
        report.applied
    }

    pub(super) fn retired_addresses(&self) -> BTreeSet<IpAddr> {
        self.reconciler.retired_addresses().collect()
    }

    pub(super) fn any_counted(&self) -> bool {
        self.reconciler.mirror().any_counted()
    }

    /// Backends whose connections are counted.
    pub(super) fn counted(&self) -> Counted {
        self.reconciler.mirror().counted()
    }

    pub(super) fn any_retired(&self) -> bool {
        self.reconciler.retired_addresses().len() > 0
    }

    pub(super) fn remove_retired_addresses(&mut self, in_use: &BTreeSet<IpAddr>, read_at: Instant, now: Instant) {
        let report = self.reconciler.remove_retired_addresses(in_use, read_at, now);
        tracing::debug!(removed = report.applied, in_use = in_use.len(), "addresses without a Service");
    }

    pub(super) fn set_socket_ending(&mut self, ending: SocketEnding, now: Instant) {
        let report = self.reconciler.set_socket_ending(ending, now);
        self.log(&report);
    }

    /// UDP endpoints that left since the last call.
    pub(super) fn take_retired(&mut self) -> Vec<SocketAddr> {
        self.reconciler.take_retired()
    }

    /// Sockets that are connected to these endpoints may be left.
    pub(super) fn steer_vanished(&mut self, endpoints: &[SocketAddr], now: Instant) {
        let report = self.reconciler.steer_vanished(endpoints.iter().map(SocketAddr::ip), now);
        self.log(&report);
    }

    /// Takes over what a source said. Returns whether a sync is needed.
    pub(super) fn on_event(&mut self, event: Event) -> bool {
        if let Event::Skipped(skips) = &event {
            self.metrics.count_skips(skips);
            self.events.skipped(skips);
        }
        let before = self.snapshot.synced().len();
        let change = self.changes.of(&event);
        let touched = self.snapshot.apply(event);
        self.changes.note(change, &touched, self.metrics.kube_proxy());
        if touched.node {
            let ips =
                self.snapshot.node().map(|node| node.internal_ips.iter().chain(&node.external_ips).copied().collect());
            self.node_stale |= self.view.set_node_ips(ips.unwrap_or_default());
        }
        self.stale.merge(touched);
        !self.stale.is_empty() || before != self.snapshot.synced().len()
    }

    /// Takes over a change of the node's network. Returns whether a sync is needed.
    pub(super) fn on_net(&mut self, change: NetChange) -> bool {
        match &change {
            NetChange::All(_) => self.node_seen = true,
            NetChange::LinkGone(index) => self.gone.push(*index),
            _ => {}
        }
        let changed = self.view.apply(change);
        self.node_stale |= changed;
        changed
    }

    /// An index may belong to another interface already.
    pub(super) fn take_gone(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.gone)
    }

    /// IFACES before anything is attached: a packet on an unknown interface would have no role.
    pub(super) fn sync_node(&mut self, now: Instant) -> usize {
        if !self.node_seen || !self.node_stale {
            return 0;
        }
        if !self.snapshot.synced().contains(&SourceKind::Node) {
            return self.add_ifaces(now);
        }
        self.node_stale = false;
        let address = |(ip, flags): (IpAddr, u32)| NodeAddress { ip, nodeport: flags & ADDR_NODEPORT != 0 };
        let addresses: Vec<NodeAddress> = self.view.addresses().into_iter().map(address).collect();
        let ifaces = self.reconciler.set_ifaces(self.view.ifaces(), now);
        let addresses = self.reconciler.set_node_addresses(&addresses, now);
        self.log(&ifaces);
        self.log(&addresses);
        self.find_stale();
        ifaces.applied + addresses.applied
    }

    /// The Node object, which decides on roles and source addresses, may be on its way: what an earlier agent wrote stays, and
    /// only new interfaces are added.
    fn add_ifaces(&mut self, now: Instant) -> usize {
        let mut ifaces = self.view.ifaces();
        for (index, known) in &self.reconciler.mirror().actual().ifaces {
            if let Some(iface) = ifaces.get_mut(index) {
                *iface = *known;
            }
        }
        let report = self.reconciler.set_ifaces(ifaces, now);
        self.log(&report);
        report.applied
    }

    /// Brings the maps in line with what was heard.
    pub(super) fn sync(&mut self, now: Instant) -> Synced {
        let mut applied = self.sync_node(now);
        if !self.node_seen {
            return Synced { applied, all: false, first: false };
        }
        let stale = std::mem::take(&mut self.stale);
        if stale.service_cidrs {
            applied += self.sync_service_cidrs(now);
        }
        let mut services: BTreeSet<ServiceName> = stale.services;
        if stale.node {
            services.extend(self.snapshot.services().map(|service| service.name.clone()));
            services.extend(self.snapshot.pods().map(|pod| pod.name.clone()));
        }
        applied += self.sync_services(&services, now);
        let first = self.snapshot.is_synced() && !self.reconciler.is_synced();
        if first {
            fault::reach(FaultPoint::SourcesSynced);
            let report = self.reconciler.sources_synced(now);
            fault::reach(FaultPoint::Pruned);
            self.log(&report);
            applied += report.applied;
        }
        Synced { applied, all: stale.node || first, first }
    }

    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.reconciler.next_retry()
    }

    pub(super) fn retry(&mut self, now: Instant) {
        let failing = !self.reconciler.status().failures.is_empty();
        let report = self.reconciler.retry(now);
        self.log(&report);
        if failing && report.failed.is_empty() && self.reconciler.status().failures.is_empty() {
            tracing::info!("all failed writes have succeeded");
        }
    }

    /// After a change of the node's network: whose desired state is another now?
    fn find_stale(&mut self) {
        let own: Vec<IpAddr> = self.view.addresses().into_keys().collect();
        if own != self.own_addresses {
            self.own_addresses = own;
            self.stale.node = true;
        }
        let changed =
            |answers: &[(IpAddr, bool)]| answers.iter().any(|(ip, direct)| self.view.is_direct(*ip) != *direct);
        let stale = self.direct.iter().filter(|(_, answers)| changed(answers)).map(|(name, _)| name.clone());
        self.stale.services.extend(stale);
    }

    /// What the Service should have in the maps; `None` if it is gone.
    fn build(&mut self, name: &ServiceName) -> Option<ServiceDesired> {
        self.direct.remove(name);
        let (service, pod) = (self.snapshot.service(name), self.snapshot.pod(name));
        if service.is_none() && pod.is_none() {
            return None;
        }
        let answers = RefCell::new(Vec::new());
        let is_direct = |address| {
            let direct = self.view.is_direct(address);
            answers.borrow_mut().push((address, direct));
            direct
        };
        let facts = Facts {
            node: &self.snapshot.node_facts(),
            is_direct: &is_direct,
            node_addresses: &self.own_addresses,
            external_ranges: &self.settings.external_ranges,
        };
        let slices: Vec<_> = self.snapshot.slices_of(name).collect();
        let of_service = service.map(|service| build_desired(service, slices.iter().copied(), &facts));
        let desired = of_service.or_else(|| pod.map(|pod| build_host_ports(pod, &facts)));
        let mut answers = answers.into_inner();
        answers.sort_unstable();
        answers.dedup();
        answers.shrink_to_fit();
        if !answers.is_empty() {
            self.direct.insert(name.clone(), answers);
        }
        desired
    }

    fn log(&self, report: &Report) {
        for (subject, failure) in &report.failed {
            tracing::error!(%subject, attempts = failure.attempts, "{}", failure.error);
            if let DataplaneError::Full { .. } = &*failure.error {
                self.events.warn(self.object_of(subject), Reason::MapFull, &failure.error);
            }
        }
        for conflict in &report.conflicts {
            tracing::warn!("{conflict}");
        }
        self.metrics.count_conflicts(&report.conflicts);
        self.events.conflicts(&report.conflicts);
    }

    fn object_of(&self, subject: &Subject) -> ObjectRef {
        match subject {
            Subject::Service(name) => object_of(name),
            Subject::Node => ObjectRef { kind: "Node", namespace: "".into(), name: self.snapshot.node_facts().name },
        }
    }

    fn sync_services(&mut self, services: &BTreeSet<ServiceName>, now: Instant) -> usize {
        let mut applied = 0;
        for name in services {
            self.note_check(name);
            let desired = self.build(name);
            for warning in desired.iter().flat_map(|desired| &desired.warnings) {
                if !self.reconciler.status().warnings.get(name).is_some_and(|known| known.contains(warning)) {
                    tracing::warn!(service = %name, "{warning}");
                    self.metrics.count_warning(warning);
                    self.events.warning(name, warning);
                }
            }
            let report = self.reconciler.set_service(name, desired, now);
            self.log(&report);
            applied += report.applied;
        }
        applied
    }
}

/// How long to wait for a deadline from `now`.
pub(super) fn until(deadline: Option<Instant>, now: Instant) -> Option<Duration> {
    deadline.map(|deadline| deadline.saturating_duration_since(now))
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "random_tests/mod.rs"]
mod random;
