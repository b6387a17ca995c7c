//! ADDRS: one address may be several things at once, for several Services and for the node. Each bit is counted.
//!
//! An address that nobody has any more is retired at first: its element stays, with a bit of its own, for the connections
//! that are open ([`ADDR_RETIRED`]). The agent removes it when none is left. Addresses in a Service CIDR need none of this:
//! packets to them are looked up in CONNTRACK anyway.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    time::Instant,
};

use proxy_common::{
    abi::{ADDR_CLUSTER_IP, ADDR_EXTERNAL, ADDR_NODE, ADDR_RETIRED, AddressInfo},
    net::{V4, V6},
};

use crate::dataplane::{Actual, FamilyOp, MapFamily, MapOp};

/// What had connections, if it had any of these, or has them still.
const SERVED: u32 = ADDR_CLUSTER_IP | ADDR_EXTERNAL | ADDR_NODE | ADDR_RETIRED;

/// Bits that one owner (a Service or the node) asks for.
pub(super) type AddressClaims = BTreeSet<(IpAddr, u32)>;

#[derive(Clone, Debug, Default)]
pub(super) struct AddressCounts {
    counts: HashMap<(IpAddr, u32), u32>,
    /// Since when.
    retired: HashMap<IpAddr, Instant>,
    /// No more than this many.
    most_retired: usize,
}

impl AddressCounts {
    /// Those that were retired when another agent ran are so from now on.
    pub(super) fn restore(actual: &Actual, most_retired: usize, now: Instant) -> Self {
        fn of<F: MapFamily>(actual: &Actual) -> impl Iterator<Item = IpAddr> {
            let retired = F::tables(actual).addrs.iter().filter(|(_, info)| info.flags == ADDR_RETIRED);
            retired.map(|(addr, _)| F::to_ip(*addr))
        }
        let retired = of::<V4>(actual).chain(of::<V6>(actual)).map(|ip| (ip, now)).collect();
        Self { counts: HashMap::new(), retired, most_retired }
    }

    pub(super) fn retired(&self) -> impl ExactSizeIterator<Item = (IpAddr, Instant)> {
        self.retired.iter().map(|(ip, since)| (*ip, *since))
    }

    /// Notes a write that was done.
    pub(super) fn written(&mut self, op: &MapOp, now: Instant) {
        match op {
            MapOp::V4(op) => self.written_family(op, now),
            MapOp::V6(op) => self.written_family(op, now),
            _ => {}
        }
    }

    fn written_family<F: MapFamily>(&mut self, op: &FamilyOp<F>, now: Instant) {
        match op {
            FamilyOp::PutAddr(addr, info) if info.flags == ADDR_RETIRED => {
                self.retired.insert(F::to_ip(*addr), now);
            }
            FamilyOp::PutAddr(addr, _) | FamilyOp::DeleteAddr(addr) => {
                self.retired.remove(&F::to_ip(*addr));
            }
            _ => {}
        }
    }

    /// Replaces what one owner asks for. Returns the addresses whose bits may have changed.
    pub(super) fn replace(&mut self, old: &AddressClaims, new: &AddressClaims) -> BTreeSet<IpAddr> {
        for claim in old.difference(new) {
            if let Some(count) = self.counts.get_mut(claim) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(claim);
                }
            }
        }
        for claim in new.difference(old) {
            *self.counts.entry(*claim).or_default() += 1;
        }
        old.symmetric_difference(new).map(|(ip, _)| *ip).collect()
    }

    fn flags(&self, ip: IpAddr) -> u32 {
        // The five bits that are claimed.
        (0..5).map(|bit| 1 << bit).filter(|bit| self.counts.contains_key(&(ip, *bit))).sum()
    }

    /// The write for one address, if one is needed. With `keep`, no bit that is there goes.
    pub(super) fn diff(&self, ip: IpAddr, actual: &Actual, keep: bool) -> Option<MapOp> {
        match ip {
            IpAddr::V4(_) => self.diff_family::<V4>(ip, actual, keep),
            IpAddr::V6(_) => self.diff_family::<V6>(ip, actual, keep),
        }
    }

    fn diff_family<F: MapFamily>(&self, ip: IpAddr, actual: &Actual, keep: bool) -> Option<MapOp> {
        let addr = F::from_ip(ip)?;
        let current = F::tables(actual).addrs.get(&addr).map(|info| info.flags);
        let kept = if keep { current.unwrap_or(0) & !ADDR_RETIRED } else { 0 };
        let put = |flags| Some(F::op(FamilyOp::PutAddr(addr, AddressInfo { flags })));
        match (self.flags(ip) | kept, current) {
            (0, None) => None,
            (0, Some(current)) if current & SERVED != 0 && self.may_retire::<F>(&addr, actual) => {
                if current == ADDR_RETIRED { None } else { put(ADDR_RETIRED) }
            }
            (0, Some(_)) => Some(F::op(FamilyOp::DeleteAddr(addr))),
            (flags, current) if current == Some(flags) => None,
            (flags, _) => put(flags),
        }
    }

    fn may_retire<F: MapFamily>(&self, addr: &F::Addr, actual: &Actual) -> bool {
        let room = self.retired.len() < self.most_retired || self.retired.contains_key(&F::to_ip(*addr));
        room && !actual.switches.in_service_cidr::<F>(addr)
    }
}

/// The write that removes an address.
pub(super) fn deletion(ip: IpAddr) -> Option<MapOp> {
    fn of<F: MapFamily>(ip: IpAddr) -> Option<MapOp> {
        Some(F::op(FamilyOp::DeleteAddr(F::from_ip(ip)?)))
    }
    if ip.is_ipv4() { of::<V4>(ip) } else { of::<V6>(ip) }
}

/// Every address in ADDRS.
pub(super) fn known_addresses(actual: &Actual) -> BTreeSet<IpAddr> {
    fn of<F: MapFamily>(actual: &Actual) -> impl Iterator<Item = IpAddr> {
        F::tables(actual).addrs.keys().map(|addr| F::to_ip(*addr))
    }
    of::<V4>(actual).chain(of::<V6>(actual)).collect()
}
