//! The maps as plain collections, for tests without a kernel. A fake may be told to fail, and holds no more
//! than its capacity, as the kernel's maps do.

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{Actual, Capacity, Dataplane, DataplaneError, FamilyOp, FamilyTables, MapFamily, MapOp};

/// Which writes fail.
#[derive(Clone, Debug)]
pub enum Injection {
    None,
    /// The n-th write from now, counted from 1.
    Nth(u64),
    /// Each write with this probability.
    Random {
        probability: f64,
        random: Box<StdRng>,
    },
}

impl Injection {
    #[must_use]
    pub fn random(probability: f64, seed: u64) -> Self {
        Injection::Random { probability, random: Box::new(StdRng::seed_from_u64(seed)) }
    }
}

#[derive(Clone, Debug)]
pub struct FakeMaps {
    pub actual: Actual,
    pub limits: Capacity,
    pub injection: Injection,
    /// Every write that succeeded, in order.
    pub log: Vec<MapOp>,
}

impl Default for FakeMaps {
    fn default() -> Self {
        Self::with_capacity(Capacity::default())
    }
}

impl FakeMaps {
    #[must_use]
    pub fn with_capacity(limits: Capacity) -> Self {
        Self { actual: Actual::default(), limits, injection: Injection::None, log: Vec::new() }
    }

    fn is_injected(&mut self) -> bool {
        match &mut self.injection {
            Injection::None => false,
            Injection::Nth(countdown) => {
                *countdown = countdown.saturating_sub(1);
                let now = *countdown == 0;
                if now {
                    self.injection = Injection::None;
                }
                now
            }
            Injection::Random { probability, random } => random.random_bool(*probability),
        }
    }

    /// The capacity of the map that `op` writes, if the write does not fit.
    fn exceeded(&self, op: &MapOp) -> Option<usize> {
        let limits = &self.limits;
        let fits = |used: usize, known: bool, limit: usize| (!known && used >= limit).then_some(limit);
        let within = |end: usize, limit: usize| (end > limit).then_some(limit);
        match op {
            MapOp::V4(op) => exceeded_in(&self.actual.v4, op, limits),
            MapOp::V6(op) => exceeded_in(&self.actual.v6, op, limits),
            MapOp::WriteRing { start, slots } => within(*start as usize + slots.len(), limits.rings),
            MapOp::WriteSet { index, .. } => within(*index as usize + 1, limits.sets),
            MapOp::PutPortName(id, _) => {
                let names = &self.actual.port_names;
                fits(names.len(), names.contains_key(id), limits.port_names)
            }
            MapOp::PutIface(index, _) => {
                let ifaces = &self.actual.ifaces;
                fits(ifaces.len(), ifaces.contains_key(index), limits.ifaces)
            }
            MapOp::DeletePortName(_) | MapOp::DeleteIface(_) | MapOp::WriteSwitches(_) => None,
        }
    }
}

impl Dataplane for FakeMaps {
    fn apply(&mut self, op: &MapOp) -> Result<(), DataplaneError> {
        if self.is_injected() {
            return Err(DataplaneError::Injected { op: op.to_string() });
        }
        if let Some(capacity) = self.exceeded(op) {
            return Err(DataplaneError::Full { map: op.map(), op: op.to_string(), capacity });
        }
        self.actual.apply(op);
        self.log.push(op.clone());
        Ok(())
    }

    fn read_all(&self) -> Result<Actual, DataplaneError> {
        Ok(self.actual.clone())
    }

    fn capacity(&self) -> Capacity {
        self.limits
    }
}

fn exceeded_in<F: MapFamily>(tables: &FamilyTables<F>, op: &FamilyOp<F>, limits: &Capacity) -> Option<usize> {
    let (used, known, limit) = match op {
        FamilyOp::PutAddr(addr, _) => (tables.addrs.len(), tables.addrs.contains_key(addr), limits.addrs),
        FamilyOp::PutService(key, _) => (tables.services.len(), tables.services.contains_key(key), limits.services),
        FamilyOp::PutBackend(id, _) => (*id as usize, false, limits.backends),
        FamilyOp::PutSourceRange(range) => {
            (tables.source_ranges.len(), tables.source_ranges.contains(range), limits.src_ranges)
        }
        FamilyOp::DeleteAddr(_) | FamilyOp::DeleteService(_) | FamilyOp::DeleteSourceRange(_) => return None,
    };
    (!known && used >= limit).then_some(limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_common::abi::{EmptySet, EndpointSet};

    fn write(index: u32) -> MapOp {
        MapOp::WriteSet { index, set: EndpointSet::empty(EmptySet::Drop) }
    }

    #[test]
    fn fails_when_told_and_when_full() {
        let mut fake = FakeMaps::with_capacity(Capacity { sets: 4, ..Capacity::default() });
        fake.injection = Injection::Nth(2);
        fake.apply(&write(1)).expect("the first write");
        assert!(matches!(fake.apply(&write(2)), Err(DataplaneError::Injected { .. })));
        fake.apply(&write(2)).expect("only once");
        let error = fake.apply(&write(4)).expect_err("beyond the end");
        assert_eq!(error.to_string(), "empty set 4 (Drop): map SETS is full (4 entries); raise --sets-max");
        assert_eq!(fake.log.len(), 2);
        assert_eq!(fake.actual.set(2), EndpointSet::empty(EmptySet::Drop));
        assert_eq!(fake.actual.set(3), EndpointSet::empty(EmptySet::Refuse));
    }
}
