//! Numbers for names: service-ports, sets and backends. Restored from the maps, so that a restart changes none.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    dataplane::Capacity,
    desired::SetKind,
    model::{Family, Protocol, ServiceName, ServicePortName},
};

/// How long a number or a ring range rests before it is used for something else: longer than any packet can
/// be between two look-ups.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// Indices of one array, or keys of one map. 0 is never given out: in the maps it means "none".
#[derive(Clone, Debug)]
pub(super) struct IdPool {
    next: u32,
    end: u32,
    /// Oldest first.
    resting: VecDeque<(Instant, u32)>,
}

#[derive(Clone, Debug)]
pub(super) struct IdAllocator {
    ports: HashMap<ServiceName, BTreeMap<(Arc<str>, Protocol), u32>>,
    sets: HashMap<(u32, Family, SetKind), u32>,
    port_pool: IdPool,
    set_pool: IdPool,
    pub(super) backends_v4: IdPool,
    pub(super) backends_v6: IdPool,
}

/// What stands in the maps already.
pub(super) struct Restored {
    pub(super) ports: Vec<(ServicePortName, u32)>,
    pub(super) sets: HashMap<(u32, Family, SetKind), u32>,
    pub(super) backends_v4: BTreeSet<u32>,
    pub(super) backends_v6: BTreeSet<u32>,
}

impl IdPool {
    /// A pool for an array of `len` elements of which `used` are in use.
    pub(super) fn restore(len: usize, used: &BTreeSet<u32>, now: Instant) -> Self {
        let next = used.last().map_or(1, |last| last + 1);
        let resting = (1..next).filter(|id| !used.contains(id)).map(|id| (now, id)).collect();
        Self { next, end: u32::try_from(len).unwrap_or(u32::MAX), resting }
    }

    pub(super) fn take(&mut self, now: Instant) -> Option<u32> {
        if self.resting.front().is_some_and(|(ready, _)| *ready <= now) {
            return self.resting.pop_front().map(|(_, id)| id);
        }
        if self.next >= self.end {
            return None;
        }
        self.next += 1;
        Some(self.next - 1)
    }

    /// For an id that packets may have seen.
    pub(super) fn release(&mut self, id: u32, now: Instant) {
        self.resting.push_back((now + GRACE, id));
    }

    /// For an id that was taken and never written.
    pub(super) fn give_back(&mut self, id: u32, now: Instant) {
        self.resting.push_front((now, id));
    }
}

impl IdAllocator {
    pub(super) fn restore(capacity: &Capacity, restored: Restored, now: Instant) -> Self {
        let mut ports: HashMap<ServiceName, BTreeMap<_, _>> = HashMap::new();
        let used_ports = restored.ports.iter().map(|(_, id)| *id).collect();
        for (name, id) in restored.ports {
            ports.entry(name.service).or_default().entry((name.port, name.protocol)).or_insert(id);
        }
        let used_sets = restored.sets.values().copied().collect();
        Self {
            ports,
            sets: restored.sets,
            // PORT_NAMES is a hash map: ids from 1 to its capacity, both included.
            port_pool: IdPool::restore(capacity.port_names + 1, &used_ports, now),
            set_pool: IdPool::restore(capacity.sets, &used_sets, now),
            backends_v4: IdPool::restore(capacity.backends, &restored.backends_v4, now),
            backends_v6: IdPool::restore(capacity.backends, &restored.backends_v6, now),
        }
    }

    /// Services that have ids.
    pub(super) fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.ports.keys()
    }

    /// The service-ports of one Service that have ids.
    pub(super) fn ports_of(&self, service: &ServiceName) -> Vec<(ServicePortName, u32)> {
        let ports = self.ports.get(service).into_iter().flatten();
        ports
            .map(|((port, protocol), id)| (ServicePortName::new(service.clone(), port.clone(), *protocol), *id))
            .collect()
    }

    pub(super) fn port(&mut self, name: &ServicePortName, now: Instant) -> Option<u32> {
        let key = (name.port.clone(), name.protocol);
        if let Some(id) = self.ports.get(&name.service).and_then(|ports| ports.get(&key)) {
            return Some(*id);
        }
        let id = self.port_pool.take(now)?;
        self.ports.entry(name.service.clone()).or_default().insert(key, id);
        Some(id)
    }

    pub(super) fn release_port(&mut self, name: &ServicePortName, now: Instant) {
        let Some(ports) = self.ports.get_mut(&name.service) else { return };
        if let Some(id) = ports.remove(&(name.port.clone(), name.protocol)) {
            self.port_pool.release(id, now);
        }
        if ports.is_empty() {
            self.ports.remove(&name.service);
        }
    }

    pub(super) fn set(&mut self, port: u32, family: Family, kind: SetKind, now: Instant) -> Option<u32> {
        let key = (port, family, kind);
        if let Some(index) = self.sets.get(&key) {
            return Some(*index);
        }
        let index = self.set_pool.take(now)?;
        self.sets.insert(key, index);
        Some(index)
    }

    pub(super) fn known_set(&self, port: u32, family: Family, kind: SetKind) -> Option<u32> {
        self.sets.get(&(port, family, kind)).copied()
    }

    /// Sets that belong to somebody.
    pub(super) fn used_sets(&self) -> BTreeSet<u32> {
        self.sets.values().copied().collect()
    }

    pub(super) fn release_set(&mut self, port: u32, family: Family, kind: SetKind, now: Instant) {
        if let Some(index) = self.sets.remove(&(port, family, kind)) {
            self.set_pool.release(index, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_rest_before_they_are_used_again() {
        let now = Instant::now();
        let mut pool = IdPool::restore(5, &BTreeSet::from([1, 3]), now);
        assert_eq!(pool.take(now), Some(2), "gaps first");
        assert_eq!(pool.take(now), Some(4));
        assert_eq!(pool.take(now), None, "0 is never used");
        pool.release(3, now);
        assert_eq!(pool.take(now), None, "still resting");
        assert_eq!(pool.take(now + GRACE), Some(3));
        pool.give_back(3, now);
        assert_eq!(pool.take(now), Some(3), "was never written");
    }
}
