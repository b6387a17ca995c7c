//! [`Reconciler`]: keeps the maps as the desired states say, one Service at a time.
//!
//! Until [`Reconciler::sources_synced`] is called nothing of a Service is written: what stands in the maps from
//! before a restart works on, and ownership of frontends is known before the first write.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::Arc,
    time::Instant,
};

use ipnet::IpNet;
use proxy_common::abi::{Iface, MAX_SERVICE_CIDRS, SocketEnding};

use super::{
    addresses::{AddressClaims, AddressCounts, deletion, known_addresses},
    claims::{Claims, Conflict},
    diff::diff,
    ids::IdAllocator,
    mirror::Mirror,
    node::{NodeAddress, NodeState, address_claims},
    pending::{Failure, Pending, Subject},
    restore::restore,
    rings::RingAllocator,
    slots::MAGLEV_TABLE_SIZE,
    target::RETIRED_SET,
    vanished::Vanished,
};
use crate::{
    dataplane::{Capacity, Dataplane, DataplaneError, MapOp},
    desired::{ServiceDesired, Warning},
    model::{Family, ServiceName},
};

/// At most one in so many addresses of ADDRS waits for its last connections.
const MOST_RETIRED: usize = 8;

#[derive(Clone, Debug)]
pub struct Options {
    /// Ports that no external or load balancer IP takes over on the node's own addresses.
    pub protected_node_ports: Vec<RangeInclusive<u16>>,
    /// Slots of a Maglev table, a prime; the same on all nodes.
    pub maglev_table_size: u32,
}

/// What one call did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Writes that succeeded.
    pub applied: usize,
    /// Whose writes failed in this call. They are tried again by [`Reconciler::retry`].
    pub failed: Vec<(Subject, Failure)>,
    /// Conflicts that are new.
    pub conflicts: Vec<Conflict>,
}

/// Everything that is not as it should be.
pub struct Status<'a> {
    pub failures: &'a BTreeMap<Subject, Failure>,
    pub conflicts: &'a BTreeMap<ServiceName, Vec<Conflict>>,
    pub warnings: &'a BTreeMap<ServiceName, Vec<Warning>>,
}

pub struct Reconciler<D> {
    pub(super) dataplane: D,
    pub(super) capacity: Capacity,
    pub(super) mirror: Mirror,
    pub(super) ids: IdAllocator,
    pub(super) rings: RingAllocator,
    pub(super) claims: Claims,
    pub(super) maglev_table_size: u32,
    pub(super) addresses: AddressCounts,
    pub(super) services: HashMap<ServiceName, ServiceState>,
    node: NodeState,
    vanished: Vanished,
    /// UDP endpoints that stopped serving since [`Self::take_retired`].
    pub(super) retired: Vec<SocketAddr>,
    pub(super) pending: Pending,
    pub(super) conflicts: BTreeMap<ServiceName, Vec<Conflict>>,
    warnings: BTreeMap<ServiceName, Vec<Warning>>,
    synced: bool,
}

#[derive(Default)]
pub(super) struct ServiceState {
    /// None: it is gone, and not yet out of the maps.
    pub(super) desired: Option<Arc<ServiceDesired>>,
    pub(super) addresses: AddressClaims,
    /// Addresses whose entry in ADDRS may not be right yet.
    pub(super) dirty_addresses: BTreeSet<IpAddr>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            protected_node_ports: vec![22..=22, 2379..=2380, 6443..=6443, 10249..=10250, 10256..=10256],
            maglev_table_size: MAGLEV_TABLE_SIZE,
        }
    }
}

impl<D: Dataplane> Reconciler<D> {
    /// Takes over what stands in the maps.
    pub fn new(dataplane: D, options: Options, now: Instant) -> Result<Self, DataplaneError> {
        let mirror = Mirror::new(dataplane.read_all()?);
        let capacity = dataplane.capacity();
        let (ids, rings) = restore(&mirror, &capacity, now);
        let vanished = Vanished::restore(mirror.actual(), now);
        let mut addresses = AddressCounts::restore(mirror.actual(), capacity.addrs / MOST_RETIRED, now);
        addresses.replace(&AddressClaims::new(), &vanished.claims());
        Ok(Self {
            dataplane,
            capacity,
            mirror,
            ids,
            rings,
            maglev_table_size: options.maglev_table_size,
            claims: Claims::new(options.protected_node_ports),
            addresses,
            services: HashMap::new(),
            node: NodeState::default(),
            vanished,
            retired: Vec::new(),
            pending: Pending::default(),
            conflicts: BTreeMap::new(),
            warnings: BTreeMap::new(),
            synced: false,
        })
    }

    /// Every source has listed once, and each Service that exists was given to [`Self::set_service`]: writes them
    /// all, then removes what no Service claims.
    pub fn sources_synced(&mut self, now: Instant) -> Report {
        let mut report = Report::default();
        if self.synced {
            return report;
        }
        self.synced = true;
        let wanted: BTreeSet<ServiceName> = self.services.keys().cloned().collect();
        let unclaimed: BTreeSet<ServiceName> = self.ids.services().filter(|it| !wanted.contains(it)).cloned().collect();
        for name in wanted.iter().chain(&unclaimed) {
            self.reconcile(name, now, &mut report);
        }
        self.node.dirty_addresses.extend(known_addresses(self.mirror.actual()));
        self.clear_stray_sets(now, &mut report);
        self.reconcile_node(now, &mut report);
        report
    }

    /// Whether [`Self::sources_synced`] was called.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// The Service should be as `desired` says, or be gone.
    pub fn set_service(&mut self, name: &ServiceName, desired: Option<ServiceDesired>, now: Instant) -> Report {
        let mut report = Report::default();
        let old = self.services.get(name).and_then(|state| state.desired.clone());
        if old.as_deref() == desired.as_ref() {
            return report;
        }
        self.set_warnings(name, desired.as_ref());
        let is_new = desired.is_some();
        let affected = self.claims.replace(name, old.as_deref(), desired.as_ref());
        self.services.entry(name.clone()).or_default().desired = desired.map(Arc::new);
        if !self.synced {
            return report;
        }
        // Who gains a frontend writes before who loses it deletes: there is no gap.
        if is_new {
            self.reconcile(name, now, &mut report);
        }
        for other in &affected {
            self.reconcile(other, now, &mut report);
        }
        if !is_new {
            self.reconcile(name, now, &mut report);
        }
        report
    }

    pub fn set_node_addresses(&mut self, addresses: &[NodeAddress], now: Instant) -> Report {
        let claims = address_claims(addresses);
        let dirty = self.addresses.replace(&self.node.addresses, &claims);
        self.node.dirty_addresses.extend(dirty);
        self.node.addresses = claims;
        let affected = self.claims.set_node_addresses(addresses.iter().copied().collect());
        let mut report = Report::default();
        self.reconcile_node(now, &mut report);
        if self.synced {
            affected.iter().for_each(|name| self.reconcile(name, now, &mut report));
        }
        report
    }

    pub fn set_ifaces(&mut self, ifaces: BTreeMap<u32, Iface>, now: Instant) -> Report {
        self.node.ifaces = Some(ifaces);
        let mut report = Report::default();
        self.reconcile_node(now, &mut report);
        report
    }

    /// At most eight of each family count.
    pub fn set_service_cidrs(&mut self, cidrs: Vec<IpNet>, now: Instant) -> Report {
        for family in [Family::V4, Family::V6] {
            let count = cidrs.iter().filter(|it| Family::of(it.addr()) == family).count();
            if count > MAX_SERVICE_CIDRS {
                tracing::warn!(%family, count, "more than {MAX_SERVICE_CIDRS} Service CIDRs; the others are not used");
            }
        }
        self.node.service_cidrs = Some(cidrs);
        let mut report = Report::default();
        self.reconcile_node(now, &mut report);
        report
    }

    /// Addresses that are nobody's any more and wait for their connections to end.
    pub fn retired_addresses(&self) -> impl ExactSizeIterator<Item = IpAddr> {
        self.addresses.retired().map(|(ip, _)| ip)
    }

    /// Removes retired addresses that no connection uses. `in_use` was read from CONNTRACK no earlier than `read_at`: an
    /// address that was retired later may have connections that it does not tell of.
    pub fn remove_retired_addresses(&mut self, in_use: &BTreeSet<IpAddr>, read_at: Instant, now: Instant) -> Report {
        let mut report = Report::default();
        let unused = |(ip, since): &(IpAddr, Instant)| *since <= read_at && !in_use.contains(ip);
        let unused: Vec<IpAddr> = self.addresses.retired().filter(unused).map(|(ip, _)| ip).collect();
        for op in unused.into_iter().filter_map(deletion) {
            // What fails now is tried again with the next look at CONNTRACK.
            self.apply(&op, now, &mut None, &mut report);
        }
        report
    }

    /// What `weir status` says of the sockets of endpoints that left.
    pub fn set_socket_ending(&mut self, ending: SocketEnding, now: Instant) -> Report {
        self.node.socket_ending = Some(ending);
        let mut report = Report::default();
        self.reconcile_node(now, &mut report);
        report
    }

    /// UDP endpoints whose generation changed since the last call: they left, their Service did, or their port changed.
    pub fn take_retired(&mut self) -> Vec<SocketAddr> {
        std::mem::take(&mut self.retired)
    }

    /// Sockets that are connected to endpoints with these addresses may be left: their packets are steered anew.
    pub fn steer_vanished(&mut self, ips: impl IntoIterator<Item = IpAddr>, now: Instant) -> Report {
        let mut report = Report::default();
        self.change_vanished(|vanished| vanished.add(ips, now), now, &mut report);
        report
    }

    /// When [`Self::retry`] has something to do.
    pub fn next_retry(&self) -> Option<Instant> {
        [self.pending.next(), self.vanished.next()].into_iter().flatten().min()
    }

    /// Tries again what failed and is due, and ends what has lasted long enough.
    pub fn retry(&mut self, now: Instant) -> Report {
        let mut report = Report::default();
        if self.vanished.next().is_some_and(|at| at <= now) {
            self.change_vanished(|vanished| vanished.expire(now), now, &mut report);
        }
        for subject in self.pending.due(now) {
            match subject {
                Subject::Node => self.reconcile_node(now, &mut report),
                Subject::Service(name) => self.reconcile(&name, now, &mut report),
            }
        }
        report
    }

    pub fn status(&self) -> Status<'_> {
        Status { failures: self.pending.failures(), conflicts: &self.conflicts, warnings: &self.warnings }
    }

    /// What each Service was last said to need.
    #[cfg(test)]
    pub(crate) fn desired(&self) -> BTreeMap<&ServiceName, &ServiceDesired> {
        self.services.iter().filter_map(|(name, state)| Some((name, state.desired.as_deref()?))).collect()
    }

    /// What is known to stand in the maps.
    pub fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    pub fn dataplane(&self) -> &D {
        &self.dataplane
    }

    pub fn dataplane_mut(&mut self) -> &mut D {
        &mut self.dataplane
    }

    pub fn into_dataplane(self) -> D {
        self.dataplane
    }

    /// The writes that the Service's ports would need now, without doing them.
    pub fn plan(&mut self, name: &ServiceName, now: Instant) -> Vec<MapOp> {
        let desired = self.services.get(name).and_then(|state| state.desired.clone());
        let work = self.prepare(name, desired.as_deref(), now);
        work.taken.settle(&self.mirror, &mut self.ids, &mut self.rings, now);
        diff(&work.targets, &self.mirror)
    }

    fn set_warnings(&mut self, name: &ServiceName, desired: Option<&ServiceDesired>) {
        match desired.map(|it| it.warnings.clone()).filter(|it| !it.is_empty()) {
            Some(warnings) => self.warnings.insert(name.clone(), warnings),
            None => self.warnings.remove(name),
        };
    }

    pub(super) fn finish(
        &mut self,
        subject: Subject,
        error: Option<DataplaneError>,
        now: Instant,
        report: &mut Report,
    ) {
        match error {
            None => self.pending.succeeded(&subject),
            Some(error) => {
                self.pending.failed(&subject, error, now);
                if let Some(failure) = self.pending.failures().get(&subject) {
                    report.failed.push((subject, failure.clone()));
                }
            }
        }
    }

    /// Returns the addresses that could not be written.
    pub(super) fn write_dirty(
        &mut self,
        mut dirty: BTreeSet<IpAddr>,
        now: Instant,
        error: &mut Option<DataplaneError>,
        report: &mut Report,
    ) -> BTreeSet<IpAddr> {
        dirty.retain(|ip| match self.addresses.diff(*ip, self.mirror.actual(), !self.synced) {
            Some(op) => !self.apply(&op, now, error, report),
            None => false,
        });
        dirty
    }

    /// Sets that an earlier agent wrote and never came to use. They do no harm: one that cannot be written now is
    /// overwritten when its index is used.
    fn clear_stray_sets(&mut self, now: Instant, report: &mut Report) {
        let used = self.ids.used_sets();
        let sets = (0u32..).zip(&self.mirror.actual().sets);
        let stray: Vec<u32> =
            sets.filter(|(index, set)| set.len > 0 && !used.contains(index)).map(|(index, _)| index).collect();
        for index in stray {
            self.apply(&MapOp::WriteSet { index, set: RETIRED_SET }, now, &mut None, report);
        }
    }

    fn change_vanished(&mut self, change: impl FnOnce(&mut Vanished), now: Instant, report: &mut Report) {
        let before = self.vanished.claims();
        change(&mut self.vanished);
        let dirty = self.addresses.replace(&before, &self.vanished.claims());
        self.node.dirty_addresses.extend(dirty);
        self.reconcile_node(now, report);
    }

    fn reconcile_node(&mut self, now: Instant, report: &mut Report) {
        let mut error = None;
        for op in self.node.diff(self.mirror.actual(), self.synced) {
            let done = self.apply(&op, now, &mut error, report);
            if done && matches!(op, MapOp::WriteSwitches(_)) {
                // In a range that is known now, no address needs to be retired.
                self.node.dirty_addresses.extend(self.addresses.retired().map(|(ip, _)| ip));
            }
        }
        let dirty = std::mem::take(&mut self.node.dirty_addresses);
        self.node.dirty_addresses = self.write_dirty(dirty, now, &mut error, report);
        self.finish(Subject::Node, error, now, report);
    }
}
