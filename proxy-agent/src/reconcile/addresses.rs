//! ADDRS: one address may be several things at once, for several Services and for the node. Each bit is counted.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use proxy_common::{
    abi::AddressInfo,
    net::{V4, V6},
};

use crate::dataplane::{Actual, FamilyOp, MapFamily, MapOp};

/// Bits that one owner (a Service or the node) asks for.
pub(super) type AddressClaims = BTreeSet<(IpAddr, u32)>;

#[derive(Clone, Debug, Default)]
pub(super) struct AddressCounts {
    counts: HashMap<(IpAddr, u32), u32>,
}

impl AddressCounts {
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
        // The five bits ADDR_*.
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
        let flags = self.flags(ip) | if keep { current.unwrap_or(0) } else { 0 };
        match (flags, current) {
            (0, None) => None,
            (0, Some(_)) => Some(F::op(FamilyOp::DeleteAddr(addr))),
            (flags, current) if current == Some(flags) => None,
            (flags, _) => Some(F::op(FamilyOp::PutAddr(addr, AddressInfo { flags }))),
        }
    }
}

/// Every address in ADDRS.
pub(super) fn known_addresses(actual: &Actual) -> BTreeSet<IpAddr> {
    fn of<F: MapFamily>(actual: &Actual) -> impl Iterator<Item = IpAddr> {
        F::tables(actual).addrs.keys().map(|addr| F::to_ip(*addr))
    }
    of::<V4>(actual).chain(of::<V6>(actual)).collect()
}
