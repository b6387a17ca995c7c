//! Names become numbers here: [`Assigner`] turns the desired state of a service-port into the exact map entries
//! ([`PortTarget`]) that `diff` compares with what stands in the maps.

use std::time::Instant;

use proxy_common::{
    abi::{
        Backend, BackendState, EmptySet, EndpointSet, PortName, RingSlot, SERVICE_EXTERNAL_LOCAL,
        SERVICE_INTERNAL_LOCAL, SERVICE_SOURCE_RANGES, Service, ServiceKey, SourceRangeKey, names,
    },
    net::{V4, V6},
};

use super::{
    ids::IdAllocator,
    mirror::{Mirror, ReconcileFamily},
    restore::port_name,
    rings::{Range, RingAllocator},
    slots::{Member, slots},
};
use crate::{
    dataplane::{Capacity, DataplaneError, MapFamily, SourceRange},
    desired::{Frontend, PortDesired, PortFamily, SetKind},
    model::{Family, ServicePortName},
};

/// Every entry that one service-port should have.
#[derive(Clone, Debug, PartialEq)]
pub struct PortTarget {
    pub(super) id: u32,
    /// None if the service-port is to be removed.
    pub(super) name: Option<Box<PortName>>,
    pub(super) v4: FamilyTarget<V4>,
    pub(super) v6: FamilyTarget<V6>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct FamilyTarget<F: MapFamily> {
    pub(super) backends: Vec<(u32, Backend<F>)>,
    pub(super) sets: Vec<SetTarget>,
    /// Sets that no frontend uses any more.
    pub(super) retired_sets: Vec<(SetKind, u32)>,
    pub(super) source_ranges: Vec<SourceRange<F>>,
    pub(super) services: Vec<(ServiceKey<F>, Service)>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct SetTarget {
    pub(super) index: u32,
    pub(super) word: EndpointSet,
    pub(super) slots: Vec<RingSlot>,
}

/// What was taken from the pools for a target; [`Taken::settle`] returns what was not written in the end.
#[derive(Debug, Default)]
pub(super) struct Taken {
    backends: Vec<(Family, u32)>,
    ranges: Vec<(u32, Range)>,
}

pub(super) struct Assigner<'a> {
    pub(super) mirror: &'a Mirror,
    pub(super) ids: &'a mut IdAllocator,
    pub(super) rings: &'a mut RingAllocator,
    pub(super) capacity: &'a Capacity,
    pub(super) maglev_table_size: u32,
    pub(super) taken: &'a mut Taken,
    pub(super) now: Instant,
}

impl<F: MapFamily> Default for FamilyTarget<F> {
    fn default() -> Self {
        Self {
            backends: Vec::new(),
            sets: Vec::new(),
            retired_sets: Vec::new(),
            source_ranges: Vec::new(),
            services: Vec::new(),
        }
    }
}

impl Assigner<'_> {
    /// The entries of `port` with those of its frontends that no other Service owns.
    pub(super) fn port(
        &mut self,
        port: &PortDesired,
        v4_owned: &[&Frontend<V4>],
        v6_owned: &[&Frontend<V6>],
    ) -> Result<PortTarget, DataplaneError> {
        let name = &port.name;
        let full = no_room(names::PORT_NAMES, name, self.capacity.port_names);
        let id = self.ids.port(name, self.now).ok_or(full)?;
        Ok(PortTarget {
            id,
            name: Some(Box::new(port_name(name))),
            v4: self.family(id, port, v4_owned)?,
            v6: self.family(id, port, v6_owned)?,
        })
    }

    /// A service-port that should have nothing.
    pub(super) fn removed(&self, id: u32) -> PortTarget {
        PortTarget { id, name: None, v4: self.empty(id), v6: self.empty(id) }
    }

    fn empty<F: ReconcileFamily>(&self, id: u32) -> FamilyTarget<F> {
        FamilyTarget { retired_sets: self.retired::<F>(id, &[]), ..FamilyTarget::default() }
    }

    fn family<F: ReconcileFamily>(
        &mut self,
        id: u32,
        port: &PortDesired,
        owned: &[&Frontend<F>],
    ) -> Result<FamilyTarget<F>, DataplaneError> {
        if owned.is_empty() {
            return Ok(self.empty(id));
        }
        let desired = F::desired(port);
        let backends = self.backends(id, &port.name, desired)?;
        let kinds: Vec<SetKind> = [SetKind::Cluster, SetKind::Local]
            .into_iter()
            .filter(|kind| owned.iter().any(|it| it.internal == *kind || it.external == *kind))
            .collect();
        let mut sets = Vec::new();
        for kind in &kinds {
            sets.push(self.set(id, port, &backends, *kind)?);
        }
        let index = |kind: SetKind| {
            let place = kinds.iter().position(|it| *it == kind).expect("invariant: every kind used has a set");
            sets[place].index
        };
        let services = owned
            .iter()
            .map(|it| (it.key, service_value(it, id, index(it.internal), index(it.external), port)))
            .collect();
        let has_ranges = owned.iter().any(|it| it.source_ranges);
        let source_range = |(client, prefix_len): &(F::Addr, u8)| SourceRange {
            key: SourceRangeKey { service: id, client: *client },
            prefix_len: *prefix_len,
        };
        Ok(FamilyTarget {
            backends,
            retired_sets: self.retired::<F>(id, &kinds),
            source_ranges: desired.source_ranges.iter().filter(|_| has_ranges).map(source_range).collect(),
            services,
            sets,
        })
    }

    /// In the order of `desired`. An endpoint that is there already keeps its id, and every id its generation.
    fn backends<F: ReconcileFamily>(
        &mut self,
        id: u32,
        name: &ServicePortName,
        desired: &PortFamily<F>,
    ) -> Result<Vec<(u32, Backend<F>)>, DataplaneError> {
        let mut found = Vec::with_capacity(desired.backends.len());
        for it in &desired.backends {
            let backend = match F::index(self.mirror).backend(id, it.addr, it.port) {
                Some(backend) => backend,
                None => {
                    let full = no_room(F::NAMES.backends, name, self.capacity.backends);
                    let backend = F::backend_pool(self.ids).take(self.now).ok_or(full)?;
                    self.taken.backends.push((F::FAMILY, backend));
                    backend
                }
            };
            let generation = F::tables(self.mirror.actual()).backend(backend).generation;
            found.push((
                backend,
                Backend {
                    addr: it.addr,
                    port: it.port,
                    flags: it.flags,
                    state: BackendState::Serving,
                    generation,
                    service: id,
                    weight: it.weight,
                    zero: 0,
                },
            ));
        }
        Ok(found)
    }

    /// A set whose ring says already what it should keeps it; else a new range is taken.
    fn set<F: ReconcileFamily>(
        &mut self,
        id: u32,
        port: &PortDesired,
        backends: &[(u32, Backend<F>)],
        kind: SetKind,
    ) -> Result<SetTarget, DataplaneError> {
        let (desired, algorithm, name) = (F::desired(port), port.algorithm, &port.name);
        let full = no_room(names::SETS, name, self.capacity.sets);
        let index = self.ids.set(id, F::FAMILY, kind, self.now).ok_or(full)?;
        let members: Vec<_> = backends.iter().filter(|(_, it)| it.flags & kind.member_bit() != 0).collect();
        let identities: Vec<Member> = members
            .iter()
            .map(|(_, it)| Member { address: F::to_ip(it.addr), port: it.port, weight: it.weight })
            .collect();
        let order = slots(algorithm, &identities, self.maglev_table_size);
        let slots: Vec<_> = order.into_iter().map(|at| RingSlot { backend: members[at].0, set: index }).collect();
        if slots.is_empty() {
            return Ok(SetTarget { index, word: EndpointSet::empty(desired.when_empty(kind)), slots });
        }
        let actual = self.mirror.actual();
        let current = actual.set(index);
        if self.rings.is_held(index, current) && actual.ring(current) == slots {
            return Ok(SetTarget { index, word: current, slots });
        }
        let full = no_room(names::RINGS, name, self.capacity.rings);
        let len = u32::try_from(slots.len()).expect("invariant: backend ids are u32");
        let range = self.rings.take(len, self.now).ok_or(full)?;
        self.taken.ranges.push((index, range));
        Ok(SetTarget { index, word: EndpointSet { start: range.start, len }, slots })
    }

    fn retired<F: MapFamily>(&self, id: u32, kept: &[SetKind]) -> Vec<(SetKind, u32)> {
        [SetKind::Cluster, SetKind::Local]
            .into_iter()
            .filter(|kind| !kept.contains(kind))
            .filter_map(|kind| Some((kind, self.ids.known_set(id, F::FAMILY, kind)?)))
            .collect()
    }
}

impl Taken {
    /// Returns to the pools what was not written.
    pub(super) fn settle(self, mirror: &Mirror, ids: &mut IdAllocator, rings: &mut RingAllocator, now: Instant) {
        for (family, id) in self.backends {
            let (state, pool) = match family {
                Family::V4 => (mirror.actual().v4.backend(id).state, &mut ids.backends_v4),
                Family::V6 => (mirror.actual().v6.backend(id).state, &mut ids.backends_v6),
            };
            if state == BackendState::Free {
                pool.give_back(id, now);
            }
        }
        for (set, range) in self.ranges {
            rings.settle(set, range);
        }
    }
}

/// The word of a set that nothing uses.
pub(super) const RETIRED_SET: EndpointSet = EndpointSet::empty(EmptySet::Refuse);

fn service_value<F: MapFamily>(
    frontend: &Frontend<F>,
    id: u32,
    internal_set: u32,
    external_set: u32,
    port: &PortDesired,
) -> Service {
    let flag = |on: bool, bit: u8| if on { bit } else { 0 };
    Service {
        id,
        internal_set,
        external_set,
        affinity_s: port.affinity_s,
        kind: frontend.kind,
        algorithm: port.algorithm,
        flags: flag(frontend.source_ranges, SERVICE_SOURCE_RANGES)
            | flag(frontend.internal == SetKind::Local, SERVICE_INTERNAL_LOCAL)
            | flag(frontend.external == SetKind::Local, SERVICE_EXTERNAL_LOCAL),
        zero: 0,
    }
}

fn no_room(map: &'static str, name: &ServicePortName, capacity: usize) -> DataplaneError {
    DataplaneError::Full { map, op: format!("add to {name}"), capacity }
}
