//! The tables that the agent fills, counted from its mirror of them: no map is read. The main loop calls [`TableCounts::of`] when
//! somebody asks for metrics.

use std::collections::{BTreeMap, BTreeSet};

use proxy_common::abi::{BackendState, EmptySet, EndpointSet, SERVICE_EXTERNAL_LOCAL, SERVICE_INTERNAL_LOCAL, names};

use crate::dataplane::{Actual, FamilyTables, MapFamily};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableCounts {
    pub(super) entries: BTreeMap<&'static str, usize>,
    /// By family: service-ports under a Local policy without an endpoint here, while there are some elsewhere; internal and
    /// external traffic.
    pub(super) no_local: BTreeMap<&'static str, (usize, usize)>,
    pub(super) services: usize,
    /// Services and other things whose last write failed.
    pub(super) failing: usize,
}

impl TableCounts {
    pub fn of(actual: &Actual, services: usize, failing: usize) -> Self {
        let nothing = [EndpointSet::empty(EmptySet::Refuse), EndpointSet::empty(EmptySet::Drop)];
        let mut counts = Self { services, failing, ..Self::default() };
        counts.entries.extend([
            (names::SETS, actual.sets.iter().filter(|set| !nothing.contains(set)).count()),
            (names::RINGS, actual.sets.iter().map(|set| set.len as usize).sum()),
            (names::IFACES, actual.ifaces.len()),
            (names::PORT_NAMES, actual.port_names.len()),
        ]);
        counts.add("IPv4", &actual.v4, actual);
        counts.add("IPv6", &actual.v6, actual);
        counts
    }

    fn add<F: MapFamily>(&mut self, family: &'static str, tables: &FamilyTables<F>, actual: &Actual) {
        let serving = tables.backends.iter().filter(|backend| backend.state == BackendState::Serving).count();
        self.entries.extend([
            (F::NAMES.addrs, tables.addrs.len()),
            (F::NAMES.services, tables.services.len()),
            (F::NAMES.backends, serving),
            (F::NAMES.src_ranges, tables.source_ranges.len()),
        ]);
        let drops = |set: u32| actual.sets.get(set as usize) == Some(&EndpointSet::empty(EmptySet::Drop));
        let (mut internal, mut external) = (BTreeSet::new(), BTreeSet::new());
        for service in tables.services.values() {
            if service.flags & SERVICE_INTERNAL_LOCAL != 0 && drops(service.internal_set) {
                internal.insert(service.id);
            }
            if service.flags & SERVICE_EXTERNAL_LOCAL != 0 && drops(service.external_set) {
                external.insert(service.id);
            }
        }
        self.no_local.insert(family, (internal.len(), external.len()));
    }
}
