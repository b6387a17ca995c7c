//! What the node itself puts into the maps: its addresses, its interfaces, the Service CIDRs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use proxy_common::{
    abi::{ADDR_NODE, ADDR_NODEPORT, Cidr, Iface, MAX_SERVICE_CIDRS, SocketEnding, Switches},
    net::{V4, V6},
};

use super::addresses::AddressClaims;
use crate::dataplane::{Actual, MapFamily, MapOp};

/// An address of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeAddress {
    pub ip: IpAddr,
    /// NodePorts are served here (nodePortAddresses).
    pub nodeport: bool,
}

/// What was told of the node; None until it was told for the first time.
#[derive(Clone, Debug, Default)]
pub(super) struct NodeState {
    pub(super) addresses: AddressClaims,
    pub(super) dirty_addresses: BTreeSet<IpAddr>,
    pub(super) ifaces: Option<BTreeMap<u32, Iface>>,
    pub(super) service_cidrs: Option<Vec<IpNet>>,
    pub(super) socket_ending: Option<SocketEnding>,
}

impl NodeState {
    /// Writes for interfaces and Service CIDRs, additions first. The ranges stay as they are until the sources are synced: an address in
    /// one of them that no Service has is dropped, and the Services are not written yet.
    pub(super) fn diff(&self, actual: &Actual, synced: bool) -> Vec<MapOp> {
        let mut ops = Vec::new();
        if let Some(ifaces) = &self.ifaces {
            let changed = ifaces.iter().filter(|(index, iface)| actual.ifaces.get(index) != Some(iface));
            ops.extend(changed.map(|(index, iface)| MapOp::PutIface(*index, *iface)));
        }
        let switches = self.switches(&actual.switches, synced);
        if switches != actual.switches {
            ops.push(MapOp::WriteSwitches(Box::new(switches)));
        }
        if let Some(ifaces) = &self.ifaces {
            let gone = actual.ifaces.keys().filter(|index| !ifaces.contains_key(index));
            ops.extend(gone.map(|index| MapOp::DeleteIface(*index)));
        }
        ops
    }

    fn switches(&self, actual: &Switches, synced: bool) -> Switches {
        let mut switches = *actual;
        if let Some(cidrs) = self.service_cidrs.as_ref().filter(|_| synced) {
            (switches.service_cidrs_v4, switches.service_cidrs_v4_len) = family_cidrs::<V4>(cidrs);
            (switches.service_cidrs_v6, switches.service_cidrs_v6_len) = family_cidrs::<V6>(cidrs);
        }
        switches.socket_ending = self.socket_ending.unwrap_or(switches.socket_ending);
        switches
    }
}

pub(super) fn address_claims(addresses: &[NodeAddress]) -> AddressClaims {
    let nodeport = addresses.iter().filter(|it| it.nodeport).map(|it| (it.ip, ADDR_NODEPORT));
    addresses.iter().map(|it| (it.ip, ADDR_NODE)).chain(nodeport).collect()
}

/// The first eight of the family; sorted, so that the order in which they were given makes no difference.
fn family_cidrs<F: MapFamily>(cidrs: &[IpNet]) -> ([Cidr<F>; MAX_SERVICE_CIDRS], u32) {
    let found: BTreeSet<(F::Addr, F::Addr)> =
        cidrs.iter().filter_map(|cidr| Some((F::from_ip(cidr.network())?, F::from_ip(cidr.netmask())?))).collect();
    let mut array = [Cidr::NONE; MAX_SERVICE_CIDRS];
    let len = found.len().min(MAX_SERVICE_CIDRS);
    for (slot, (net, mask)) in array.iter_mut().zip(found) {
        *slot = Cidr { net, mask };
    }
    (array, len as u32)
}
