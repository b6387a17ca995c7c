//! Gives all frontends back while translated flows go on: what `weir cleanup --drain` does first.

use std::{collections::BTreeSet, net::IpAddr};

use proxy_common::abi::{ADDR_CLUSTER_IP, ADDR_EXTERNAL, ADDR_NODE, ADDR_RETIRED, AddressInfo, Switches};
use proxy_common::net::{V4, V6};

use crate::dataplane::{Actual, FamilyOp, MapFamily, MapOp};

/// The writes, in order. Addresses come first: with an address that is a ClusterIP still, a port without a frontend is refused.
/// `in_use` are frontends' addresses of open flows that ADDRS need not know as long as they lie in a Service CIDR.
#[must_use]
pub fn release(actual: &Actual, in_use: &BTreeSet<IpAddr>) -> Vec<MapOp> {
    let mut ops = addresses::<V4>(actual, in_use);
    ops.extend(addresses::<V6>(actual, in_use));
    // From here on nothing is dropped for being in the range.
    let none = Switches { service_cidrs_v4_len: 0, service_cidrs_v6_len: 0, ..actual.switches };
    if none != actual.switches {
        ops.push(MapOp::WriteSwitches(Box::new(none)));
    }
    ops.extend(frontends::<V4>(actual));
    ops.extend(frontends::<V6>(actual));
    ops
}

fn addresses<F: MapFamily>(actual: &Actual, in_use: &BTreeSet<IpAddr>) -> Vec<MapOp> {
    let known = &F::tables(actual).addrs;
    let put = |addr, flags| F::op(FamilyOp::PutAddr(addr, AddressInfo { flags }));
    let served = known.iter().filter_map(|(addr, info)| {
        let flags = released(info.flags);
        (flags != info.flags).then(|| put(*addr, flags))
    });
    let unknown = in_use.iter().filter_map(|ip| F::from_ip(*ip)).filter(|addr| !known.contains_key(addr));
    served.chain(unknown.map(|addr| put(addr, ADDR_RETIRED))).collect()
}

/// A node's address stays one: answers to our source ports come there.
fn released(flags: u32) -> u32 {
    let rest = flags & !(ADDR_CLUSTER_IP | ADDR_EXTERNAL);
    if rest == flags || rest & ADDR_NODE != 0 { rest } else { rest | ADDR_RETIRED }
}

fn frontends<F: MapFamily>(actual: &Actual) -> impl Iterator<Item = MapOp> {
    F::tables(actual).services.keys().map(|key| F::op(FamilyOp::DeleteService(*key)))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proxy_common::{
        abi::{ADDR_NODEPORT, ADDR_VANISHED, Algorithm, Cidr, FrontendKind, Service, ServiceKey},
        net::{Ipv4, TCP},
    };

    use super::*;

    fn v4(text: &str) -> Ipv4 {
        let IpAddr::V4(addr) = text.parse().unwrap() else { panic!("{text}") };
        addr.into()
    }

    fn node() -> Actual {
        let mut actual = Actual::default();
        for (addr, flags) in [
            ("10.96.0.1", ADDR_CLUSTER_IP),
            ("203.0.113.1", ADDR_EXTERNAL),
            ("172.18.0.11", ADDR_NODE | ADDR_NODEPORT | ADDR_EXTERNAL),
            ("10.244.0.9", ADDR_VANISHED),
            ("203.0.113.9", ADDR_RETIRED),
        ] {
            actual.v4.addrs.insert(v4(addr), AddressInfo { flags });
        }
        actual.switches.service_cidrs_v4[0] = Cidr { net: v4("10.96.0.0"), mask: v4("255.255.0.0") };
        actual.switches.service_cidrs_v4_len = 1;
        let key = ServiceKey { addr: v4("10.96.0.1"), port: 80, protocol: TCP, zero: 0 };
        let service = Service {
            id: 1,
            internal_set: 2,
            external_set: 2,
            affinity_s: 0,
            kind: FrontendKind::ClusterIp,
            algorithm: Algorithm::Random,
            flags: 0,
            zero: 0,
        };
        actual.v4.services.insert(key, service);
        actual
    }

    #[test]
    fn frontends_go_and_addresses_of_flows_stay() {
        let mut actual = node();
        let in_use = ["10.96.0.1", "10.96.0.7", "172.18.0.11"].map(|ip| ip.parse().unwrap()).into();
        let ops = release(&actual, &in_use);
        ops.iter().for_each(|op| actual.apply(op));
        let flags = |addr: &str| actual.v4.addrs.get(&v4(addr)).map(|info| info.flags);
        assert!(actual.v4.services.is_empty());
        assert_eq!(flags("10.96.0.1"), Some(ADDR_RETIRED));
        assert_eq!(flags("10.96.0.7"), Some(ADDR_RETIRED), "a flow to a Service that went");
        assert_eq!(flags("203.0.113.1"), Some(ADDR_RETIRED));
        assert_eq!(flags("172.18.0.11"), Some(ADDR_NODE | ADDR_NODEPORT));
        assert_eq!(flags("10.244.0.9"), Some(ADDR_VANISHED));
        assert!(!actual.switches.in_service_cidr::<V4>(&v4("10.96.0.8")));
        assert_eq!(release(&actual, &in_use), [], "nothing is left to do");
    }

    #[test]
    fn no_frontend_goes_before_its_address() {
        let ops = release(&node(), &BTreeSet::new());
        let last_address = ops.iter().rposition(|op| matches!(op, MapOp::V4(FamilyOp::PutAddr(..))));
        let first_frontend = ops.iter().position(|op| matches!(op, MapOp::V4(FamilyOp::DeleteService(_))));
        assert!(last_address < first_frontend, "{ops:?}");
    }
}
