//! The work for one Service: ids, diff, writes in order, and what becomes free. Part of [`Reconciler`].

use std::{net::SocketAddr, time::Instant};

use proxy_common::{
    abi::{ADDR_CLUSTER_IP, ADDR_EXTERNAL, Backend, BackendState, FrontendKind},
    net::{UDP, V4, V6},
};

use super::{
    addresses::AddressClaims,
    claims::{Claims, Conflict, FrontendId},
    diff::diff_port,
    pending::Subject,
    reconciler::{Reconciler, Report},
    rings::Range,
    target::{Assigner, PortTarget, Taken},
};
use crate::{
    dataplane::{Dataplane, DataplaneError, FamilyOp, MapFamily, MapOp},
    desired::{Frontend, PortDesired, PortFamily, ServiceDesired},
    model::{Family, ServiceName},
};

/// The work for one Service.
#[derive(Default)]
pub(super) struct Work {
    pub(super) targets: Vec<PortTarget>,
    pub(super) taken: Taken,
    pub(super) error: Option<DataplaneError>,
}

impl<D: Dataplane> Reconciler<D> {
    /// Brings the maps in line with what is desired of one Service.
    pub(super) fn reconcile(&mut self, name: &ServiceName, now: Instant, report: &mut Report) {
        let desired = self.services.get(name).and_then(|state| state.desired.clone());
        self.update_conflicts(name, desired.as_deref(), report);
        self.update_addresses(name, desired.as_deref());
        let Work { targets, taken, mut error } = self.prepare(name, desired.as_deref(), now);
        let mut complete: Vec<bool> =
            targets.iter().map(|target| self.write_adds(target, now, &mut error, report)).collect();
        self.write_addresses(name, now, &mut error, report);
        // The removals are found anew: a frontend may have gone from one port of the Service to another by now.
        for (target, complete) in targets.iter().zip(&mut complete) {
            for op in diff_port(target, &self.mirror).front_removals {
                *complete &= self.apply(&op, now, &mut error, report);
            }
        }
        for (target, _) in targets.iter().zip(complete).filter(|(_, complete)| *complete) {
            let mut done = true;
            for op in diff_port(target, &self.mirror).back_removals {
                done &= self.apply(&op, now, &mut error, report);
            }
            if done {
                self.release(name, target, now);
            }
        }
        taken.settle(&self.mirror, &mut self.ids, &mut self.rings, now);
        let failed = error.is_some();
        self.finish(Subject::Service(name.clone()), error, now, report);
        if desired.is_none() && !failed {
            self.services.remove(name);
        }
    }

    /// False if a write failed; those after it rely on it and are left for the next attempt.
    fn write_adds(
        &mut self,
        target: &PortTarget,
        now: Instant,
        error: &mut Option<DataplaneError>,
        report: &mut Report,
    ) -> bool {
        diff_port(target, &self.mirror).adds.iter().all(|op| self.apply(op, now, error, report))
    }

    /// Gives ids to everything and finds out what has to be written. A port that finds no room is left as it is.
    pub(super) fn prepare(&mut self, name: &ServiceName, desired: Option<&ServiceDesired>, now: Instant) -> Work {
        let mut work = Work::default();
        let known = self.ids.ports_of(name);
        let mut assigner = Assigner {
            mirror: &self.mirror,
            ids: &mut self.ids,
            rings: &mut self.rings,
            capacity: &self.capacity,
            maglev_table_size: self.maglev_table_size,
            taken: &mut work.taken,
            now,
        };
        let ports: &[PortDesired] = desired.map_or(&[], |it| &it.ports);
        for port in ports {
            let v4 = owned(&self.claims, port, &port.v4);
            let v6 = owned(&self.claims, port, &port.v6);
            match assigner.port(port, &v4, &v6) {
                Ok(target) => work.targets.push(target),
                Err(error) => work.error = work.error.or(Some(error)),
            }
        }
        for (port, id) in known {
            if !ports.iter().any(|it| it.name == port) {
                work.targets.push(assigner.removed(id));
            }
        }
        work
    }

    pub(super) fn apply(
        &mut self,
        op: &MapOp,
        now: Instant,
        error: &mut Option<DataplaneError>,
        report: &mut Report,
    ) -> bool {
        if let Err(failed) = self.dataplane.apply(op) {
            error.get_or_insert(failed);
            return false;
        }
        tracing::trace!(%op, "written");
        report.applied += 1;
        if let MapOp::WriteSet { index, set } = op {
            let range = (set.len > 0).then_some(Range { start: set.start, len: set.len });
            self.rings.publish(*index, range, now);
        }
        self.note_retired(op);
        self.release_backend(op, now);
        self.addresses.written(op, now);
        self.mirror.apply(op);
        true
    }

    /// Before the mirror follows: what the backend was is still there.
    fn note_retired(&mut self, op: &MapOp) {
        let retired = match op {
            MapOp::V4(FamilyOp::PutBackend(id, new)) => self.retired_by::<V4>(*id, new),
            MapOp::V6(FamilyOp::PutBackend(id, new)) => self.retired_by::<V6>(*id, new),
            _ => None,
        };
        self.retired.extend(retired);
    }

    fn retired_by<F: MapFamily>(&self, id: u32, new: &Backend<F>) -> Option<SocketAddr> {
        let actual = self.mirror.actual();
        let old = F::tables(actual).backend(id);
        let leaves = old.state == BackendState::Serving && new.generation != old.generation;
        let is_udp = || actual.port_names.get(&old.service).is_some_and(|name| name.protocol == UDP);
        (leaves && is_udp()).then(|| SocketAddr::new(F::to_ip(old.addr), old.port))
    }

    fn release_backend(&mut self, op: &MapOp, now: Instant) {
        let (pool, id, state) = match op {
            MapOp::V4(FamilyOp::PutBackend(id, it)) => (&mut self.ids.backends_v4, *id, it.state),
            MapOp::V6(FamilyOp::PutBackend(id, it)) => (&mut self.ids.backends_v6, *id, it.state),
            _ => return,
        };
        if state == BackendState::Free {
            pool.release(id, now);
        }
    }

    /// After the last write: sets that nothing uses, and the id of a removed service-port.
    fn release(&mut self, name: &ServiceName, target: &PortTarget, now: Instant) {
        for (kind, _) in &target.v4.retired_sets {
            self.ids.release_set(target.id, Family::V4, *kind, now);
        }
        for (kind, _) in &target.v6.retired_sets {
            self.ids.release_set(target.id, Family::V6, *kind, now);
        }
        if target.name.is_none() {
            let ports = self.ids.ports_of(name);
            if let Some((port, _)) = ports.iter().find(|(_, id)| *id == target.id) {
                self.ids.release_port(port, now);
            }
        }
    }

    fn update_conflicts(&mut self, name: &ServiceName, desired: Option<&ServiceDesired>, report: &mut Report) {
        let ports = desired.map_or(&[][..], |it| &it.ports);
        let found: Vec<Conflict> = ports
            .iter()
            .flat_map(|port| conflicts(&self.claims, port, &port.v4).chain(conflicts(&self.claims, port, &port.v6)))
            .collect();
        let before = self.conflicts.get(name).map_or(&[][..], Vec::as_slice);
        report.conflicts.extend(found.iter().filter(|it| !before.contains(it)).cloned());
        if found.is_empty() {
            self.conflicts.remove(name);
        } else {
            self.conflicts.insert(name.clone(), found);
        }
    }

    fn update_addresses(&mut self, name: &ServiceName, desired: Option<&ServiceDesired>) {
        let mut claims = AddressClaims::new();
        if let Some(desired) = desired {
            claims.extend(desired.cluster_ips.iter().map(|ip| (*ip, ADDR_CLUSTER_IP)));
            for port in &desired.ports {
                external_addresses(&self.claims, port, &port.v4, &mut claims);
                external_addresses(&self.claims, port, &port.v6, &mut claims);
            }
        }
        let Some(state) = self.services.get_mut(name) else { return };
        state.dirty_addresses.extend(self.addresses.replace(&state.addresses, &claims));
        state.addresses = claims;
    }

    fn write_addresses(
        &mut self,
        name: &ServiceName,
        now: Instant,
        error: &mut Option<DataplaneError>,
        report: &mut Report,
    ) {
        let Some(state) = self.services.get_mut(name) else { return };
        let dirty = std::mem::take(&mut state.dirty_addresses);
        let left = self.write_dirty(dirty, now, error, report);
        if let Some(state) = self.services.get_mut(name) {
            state.dirty_addresses = left;
        }
    }
}

/// The frontends of a port that no other Service owns.
fn owned<'a, F: MapFamily>(claims: &Claims, port: &PortDesired, family: &'a PortFamily<F>) -> Vec<&'a Frontend<F>> {
    let is_owned = |it: &&Frontend<F>| claims.conflict(&port.name, FrontendId::of::<F>(&it.key)).is_none();
    family.frontends.iter().filter(is_owned).collect()
}

fn conflicts<F: MapFamily>(
    claims: &Claims,
    port: &PortDesired,
    family: &PortFamily<F>,
) -> impl Iterator<Item = Conflict> {
    family.frontends.iter().filter_map(|it| {
        let frontend = FrontendId::of::<F>(&it.key);
        let reason = claims.conflict(&port.name, frontend)?;
        Some(Conflict { port: port.name.clone(), frontend, reason })
    })
}

fn external_addresses<F: MapFamily>(
    claims: &Claims,
    port: &PortDesired,
    family: &PortFamily<F>,
    found: &mut AddressClaims,
) {
    let external = owned(claims, port, family)
        .into_iter()
        .filter(|it| matches!(it.kind, FrontendKind::ExternalIp | FrontendKind::LoadBalancer));
    found.extend(external.map(|it| (F::to_ip(it.key.addr), ADDR_EXTERNAL)));
}
