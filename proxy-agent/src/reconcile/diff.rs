//! What has to be written to get from the maps as they are to a target. No side effects; called by the
//! reconciler, and by tests that say "nothing is left to do after the work is done".

use std::collections::BTreeSet;

use proxy_common::abi::{Backend, BackendState};

use super::{
    mirror::{Mirror, ReconcileFamily},
    target::{FamilyTarget, PortTarget, RETIRED_SET},
};
use crate::dataplane::{FamilyOp, MapOp};

/// The writes for one service-port, in three parts that are carried out one after the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PortPlan {
    /// From the inside out: name, backends, rings, sets, source ranges, frontends. Each relies on those before it.
    pub adds: Vec<MapOp>,
    /// Frontends and source ranges that go.
    pub front_removals: Vec<MapOp>,
    /// Sets, backends and the name, which nothing refers to any more once the rest is done.
    pub back_removals: Vec<MapOp>,
}

/// All writes for a Service, in the order in which they are carried out.
#[must_use]
pub fn diff(targets: &[PortTarget], mirror: &Mirror) -> Vec<MapOp> {
    let mut mirror = mirror.clone();
    let mut ops = Vec::new();
    let mut carry_out = |part: fn(PortPlan) -> Vec<MapOp>, mirror: &mut Mirror| {
        for target in targets {
            for op in part(diff_port(target, mirror)) {
                mirror.apply(&op);
                ops.push(op);
            }
        }
    };
    carry_out(|plan| plan.adds, &mut mirror);
    // A frontend may have gone from one port of the Service to another by now.
    carry_out(|plan| plan.front_removals, &mut mirror);
    carry_out(|plan| plan.back_removals, &mut mirror);
    ops
}

#[must_use]
pub fn diff_port(target: &PortTarget, mirror: &Mirror) -> PortPlan {
    let mut plan = PortPlan::default();
    let known_name = mirror.actual().port_names.get(&target.id);
    if let Some(name) = &target.name
        && known_name != Some(name)
    {
        plan.adds.push(MapOp::PutPortName(target.id, name.clone()));
    }
    diff_family(target.id, &target.v4, mirror, &mut plan);
    diff_family(target.id, &target.v6, mirror, &mut plan);
    if target.name.is_none() && known_name.is_some() {
        plan.back_removals.push(MapOp::DeletePortName(target.id));
    }
    plan
}

fn diff_family<F: ReconcileFamily>(id: u32, target: &FamilyTarget<F>, mirror: &Mirror, plan: &mut PortPlan) {
    add_entries(id, target, mirror, &mut plan.adds);
    remove_fronts(id, target, mirror, &mut plan.front_removals);
    remove_backs(id, target, mirror, &mut plan.back_removals);
}

fn add_entries<F: ReconcileFamily>(id: u32, target: &FamilyTarget<F>, mirror: &Mirror, adds: &mut Vec<MapOp>) {
    let tables = F::tables(mirror.actual());
    for (backend, value) in &target.backends {
        if tables.backend(*backend) != *value {
            adds.push(F::op(FamilyOp::PutBackend(*backend, *value)));
        }
    }
    for set in &target.sets {
        if mirror.actual().set(set.index) == set.word {
            continue;
        }
        if !set.slots.is_empty() {
            adds.push(MapOp::WriteRing { start: set.word.start, slots: set.slots.clone() });
        }
        adds.push(MapOp::WriteSet { index: set.index, set: set.word });
    }
    for range in &target.source_ranges {
        debug_assert_eq!(range.key.service, id);
        if !tables.source_ranges.contains(range) {
            adds.push(F::op(FamilyOp::PutSourceRange(*range)));
        }
    }
    for (key, value) in &target.services {
        if tables.services.get(key) != Some(value) {
            adds.push(F::op(FamilyOp::PutService(*key, *value)));
        }
    }
}

fn remove_fronts<F: ReconcileFamily>(id: u32, target: &FamilyTarget<F>, mirror: &Mirror, removals: &mut Vec<MapOp>) {
    for key in F::index(mirror).services(id) {
        if !target.services.iter().any(|(wanted, _)| wanted == key) {
            removals.push(F::op(FamilyOp::DeleteService(*key)));
        }
    }
    for range in F::index(mirror).source_ranges(id) {
        if !target.source_ranges.contains(range) {
            removals.push(F::op(FamilyOp::DeleteSourceRange(*range)));
        }
    }
}

fn remove_backs<F: ReconcileFamily>(id: u32, target: &FamilyTarget<F>, mirror: &Mirror, removals: &mut Vec<MapOp>) {
    for (_, index) in &target.retired_sets {
        if mirror.actual().set(*index) != RETIRED_SET {
            removals.push(MapOp::WriteSet { index: *index, set: RETIRED_SET });
        }
    }
    let wanted: BTreeSet<u32> = target.backends.iter().map(|(backend, _)| *backend).collect();
    for backend in F::index(mirror).backends(id).filter(|backend| !wanted.contains(backend)) {
        let value = F::tables(mirror.actual()).backend(backend);
        removals.push(F::op(FamilyOp::PutBackend(backend, freed(value))));
    }
}

/// The generation changes the moment that an endpoint stops serving: flows that carry the old one choose again.
fn freed<F: ReconcileFamily>(backend: Backend<F>) -> Backend<F> {
    Backend { state: BackendState::Free, flags: 0, generation: backend.generation.wrapping_add(1), ..backend }
}
