//! [`Mirror`]: what the reconciler knows to stand in the maps, with indices by service-port id, so that work for
//! one Service never walks over the others.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proxy_common::{
    abi::{Algorithm, BackendState, SERVICE_EXTERNAL_LOCAL, SERVICE_INTERNAL_LOCAL, Service, ServiceKey},
    net::{V4, V6},
};

use super::ids::{IdAllocator, IdPool};
use crate::{
    dataplane::{Actual, Counted, FamilyOp, MapFamily, MapOp, SourceRange},
    desired::{PortDesired, PortFamily, SetKind},
};

/// Access to the state of one family from code that is generic over it.
pub(super) trait ReconcileFamily: MapFamily {
    fn index(mirror: &Mirror) -> &FamilyIndex<Self>;
    fn backend_pool(ids: &mut IdAllocator) -> &mut IdPool;
    fn desired(port: &PortDesired) -> &PortFamily<Self>;
}

#[derive(Clone, Debug, Default)]
pub struct Mirror {
    actual: Actual,
    v4: FamilyIndex<V4>,
    v6: FamilyIndex<V6>,
}

/// What belongs to each service-port id.
#[derive(Clone, Debug)]
pub(super) struct FamilyIndex<F: MapFamily> {
    services: HashMap<u32, BTreeSet<ServiceKey<F>>>,
    backends: HashMap<u32, BTreeMap<(F::Addr, u16), u32>>,
    source_ranges: HashMap<u32, BTreeSet<SourceRange<F>>>,
    /// Service-ports whose connections are counted (algorithm lc).
    counted: BTreeSet<u32>,
}

impl<F: MapFamily> Default for FamilyIndex<F> {
    fn default() -> Self {
        Self {
            services: HashMap::new(),
            backends: HashMap::new(),
            source_ranges: HashMap::new(),
            counted: BTreeSet::new(),
        }
    }
}

impl<F: MapFamily> FamilyIndex<F> {
    fn build(actual: &Actual) -> Self {
        let mut index = Self::default();
        let tables = F::tables(actual);
        for (key, value) in &tables.services {
            index.add_service(key, value);
        }
        for (id, backend) in (0u32..).zip(&tables.backends) {
            if backend.state == BackendState::Serving {
                index.backends.entry(backend.service).or_default().insert((backend.addr, backend.port), id);
            }
        }
        for range in &tables.source_ranges {
            index.source_ranges.entry(range.key.service).or_default().insert(*range);
        }
        index
    }

    /// Brings the index up to date with `op`, which is about to be applied to `actual`.
    fn follow(&mut self, op: &FamilyOp<F>, actual: &Actual) {
        let tables = F::tables(actual);
        match op {
            FamilyOp::PutService(key, value) => {
                self.forget_service(key, tables.services.get(key));
                self.add_service(key, value);
            }
            FamilyOp::DeleteService(key) => self.forget_service(key, tables.services.get(key)),
            FamilyOp::PutBackend(id, backend) => {
                let old = tables.backend(*id);
                if old.state == BackendState::Serving {
                    remove_from(&mut self.backends, old.service, |of| {
                        of.remove(&(old.addr, old.port));
                        of.is_empty()
                    });
                }
                if backend.state == BackendState::Serving {
                    self.backends.entry(backend.service).or_default().insert((backend.addr, backend.port), *id);
                }
            }
            FamilyOp::PutSourceRange(range) => {
                self.source_ranges.entry(range.key.service).or_default().insert(*range);
            }
            FamilyOp::DeleteSourceRange(range) => remove_from(&mut self.source_ranges, range.key.service, |of| {
                of.remove(range);
                of.is_empty()
            }),
            FamilyOp::PutAddr(..) | FamilyOp::DeleteAddr(_) => {}
        }
    }

    fn add_service(&mut self, key: &ServiceKey<F>, value: &Service) {
        self.services.entry(value.id).or_default().insert(*key);
        if value.algorithm == Algorithm::LeastConnections {
            self.counted.insert(value.id);
        } else {
            self.counted.remove(&value.id);
        }
    }

    fn forget_service(&mut self, key: &ServiceKey<F>, old: Option<&Service>) {
        if let Some(old) = old {
            remove_from(&mut self.services, old.id, |of| {
                of.remove(key);
                of.is_empty()
            });
            if !self.services.contains_key(&old.id) {
                self.counted.remove(&old.id);
            }
        }
    }

    /// Backends whose connections are counted, with their generations.
    fn counted(&self, actual: &Actual) -> HashMap<u32, u32> {
        let ids = self.counted.iter().flat_map(|port| self.backends(*port));
        ids.map(|id| (id, F::tables(actual).backend(id).generation)).collect()
    }

    /// The frontends of a service-port.
    pub(super) fn services(&self, port: u32) -> impl Iterator<Item = &ServiceKey<F>> {
        self.services.get(&port).into_iter().flatten()
    }

    /// Ids of the serving backends of a service-port, by address and port.
    pub(super) fn backends(&self, port: u32) -> impl Iterator<Item = u32> {
        self.backends.get(&port).into_iter().flat_map(|of| of.values().copied())
    }

    pub(super) fn backend(&self, port: u32, addr: F::Addr, number: u16) -> Option<u32> {
        self.backends.get(&port)?.get(&(addr, number)).copied()
    }

    pub(super) fn source_ranges(&self, port: u32) -> impl Iterator<Item = &SourceRange<F>> {
        self.source_ranges.get(&port).into_iter().flatten()
    }

    /// Ids of backends that are in use.
    pub(super) fn used_backends(&self) -> BTreeSet<u32> {
        self.backends.values().flat_map(|of| of.values().copied()).collect()
    }

    /// Every service-port id that has anything here.
    pub(super) fn ports(&self) -> impl Iterator<Item = u32> {
        self.services.keys().chain(self.backends.keys()).chain(self.source_ranges.keys()).copied()
    }
}

impl Mirror {
    #[must_use]
    pub fn new(actual: Actual) -> Self {
        Self { v4: FamilyIndex::build(&actual), v6: FamilyIndex::build(&actual), actual }
    }

    #[must_use]
    pub fn actual(&self) -> &Actual {
        &self.actual
    }

    /// Of Services with the algorithm lc.
    #[must_use]
    pub fn counted(&self) -> Counted {
        Counted { v4: self.v4.counted(&self.actual), v6: self.v6.counted(&self.actual) }
    }

    #[must_use]
    pub fn any_counted(&self) -> bool {
        !self.v4.counted.is_empty() || !self.v6.counted.is_empty()
    }

    pub fn apply(&mut self, op: &MapOp) {
        match op {
            MapOp::V4(op) => self.v4.follow(op, &self.actual),
            MapOp::V6(op) => self.v6.follow(op, &self.actual),
            _ => {}
        }
        self.actual.apply(op);
    }
}

/// The sets of a frontend, with what they are sets of.
pub(super) fn sets_of(value: &Service) -> [(SetKind, u32); 2] {
    let kind = |bit| if value.flags & bit == 0 { SetKind::Cluster } else { SetKind::Local };
    [(kind(SERVICE_INTERNAL_LOCAL), value.internal_set), (kind(SERVICE_EXTERNAL_LOCAL), value.external_set)]
}

fn remove_from<T>(index: &mut HashMap<u32, T>, port: u32, remove: impl FnOnce(&mut T) -> bool) {
    if let Some(of_port) = index.get_mut(&port)
        && remove(of_port)
    {
        index.remove(&port);
    }
}

impl ReconcileFamily for V4 {
    fn index(mirror: &Mirror) -> &FamilyIndex<Self> {
        &mirror.v4
    }
    fn backend_pool(ids: &mut IdAllocator) -> &mut IdPool {
        &mut ids.backends_v4
    }
    fn desired(port: &PortDesired) -> &PortFamily<Self> {
        &port.v4
    }
}

impl ReconcileFamily for V6 {
    fn index(mirror: &Mirror) -> &FamilyIndex<Self> {
        &mirror.v6
    }
    fn backend_pool(ids: &mut IdAllocator) -> &mut IdPool {
        &mut ids.backends_v6
    }
    fn desired(port: &PortDesired) -> &PortFamily<Self> {
        &port.v6
    }
}
