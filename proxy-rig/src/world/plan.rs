//! Which address belongs to whom. The last group of an IPv6 address reads like the last byte of the IPv4 one.
//!
//! | who | IPv4 | IPv6 |
//! |---|---|---|
//! | fabric gateway | 172.18.0.1/24 | fd00:172:18::1/64 |
//! | node i | 172.18.0.(10+i) | fd00:172:18::(10+i) |
//! | client i | 172.18.0.(100+i) | fd00:172:18::(100+i) |
//! | pods of node i | 10.244.i.0/24 | fd00:10:244:i::/64 |
//! | node i on its second uplink | 172.19.0.(10+i) | fd00:172:19::(10+i) |
//! | client i behind the gateways | 172.20.0.(100+i) | fd00:172:20::(100+i) |
//! | bridge of node i | 10.244.i.254 | fd00:10:244:i::254 |
//! | overlay device of node i | 10.244.i.253 | fd00:10:244:i::253 |
//! | pods of node i that hang on the fabric | 10.244.i.(200+n) | fd00:10:244:i::(200+n) |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, ensure};

pub(super) const FABRIC_LEN_V4: u8 = 24;
pub(super) const FABRIC_LEN_V6: u8 = 64;

/// One of the networks between nodes and clients. Each is a bridge in the fabric's namespace, which routes between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    /// Nodes and clients.
    First,
    /// The nodes' second uplinks.
    Second,
    /// Clients that reach the nodes through a gateway only.
    Far,
}

impl Network {
    const fn number(self) -> u8 {
        match self {
            Self::First => 18,
            Self::Second => 19,
            Self::Far => 20,
        }
    }

    pub(super) const fn bridge(self) -> &'static str {
        match self {
            Self::First => "br0",
            Self::Second => "br1",
            Self::Far => "br2",
        }
    }

    pub(super) fn gateway_v4(self) -> String {
        format!("172.{}.0.1", self.number())
    }

    pub(super) fn gateway_v6(self) -> String {
        format!("fd00:172:{}::1", self.number())
    }

    pub(super) fn cidr_v4(self) -> String {
        format!("172.{}.0.0/{FABRIC_LEN_V4}", self.number())
    }

    pub(super) fn cidr_v6(self) -> String {
        format!("fd00:172:{}::/{FABRIC_LEN_V6}", self.number())
    }
}

/// Where a pod sends everything. Nobody owns these: permanent neighbour entries in the pod
/// lead to the node's end of the pod's link.
pub(super) const POD_GATEWAY_V4: &str = "169.254.1.1";
pub(super) const POD_GATEWAY_V6: &str = "fe80::1";

/// The two addresses of one namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
}

impl Addresses {
    pub(super) fn node(index: u8) -> Result<Self> {
        Self::node_on(Network::First, index)
    }

    pub(super) fn node_on(network: Network, index: u8) -> Result<Self> {
        ensure!((1..=80).contains(&index), "node number {index} is not in 1..=80");
        Self::on_fabric(network, 10 + index)
    }

    pub(super) fn client(index: u8) -> Result<Self> {
        Self::client_on(Network::First, index)
    }

    pub(super) fn client_on(network: Network, index: u8) -> Result<Self> {
        ensure!((1..=150).contains(&index), "client number {index} is not in 1..=150");
        Self::on_fabric(network, 100 + index)
    }

    /// Of a node's bridge, the gateway of its pods.
    pub(super) fn bridge(node: u8) -> Result<Self> {
        Self::in_pod_range(node, 254)
    }

    /// Of a node's overlay device.
    pub(super) fn overlay(node: u8) -> Result<Self> {
        Self::in_pod_range(node, 253)
    }

    pub(super) fn pod(node: u8, index: u8) -> Result<Self> {
        ensure!((1..=250).contains(&index), "pod number {index} is not in 1..=250");
        Self::in_pod_range(node, index)
    }

    fn in_pod_range(node: u8, index: u8) -> Result<Self> {
        Ok(Self { v4: Ipv4Addr::new(10, 244, node, index), v6: parse_v6(&format!("fd00:10:244:{node}::{index}"))? })
    }

    fn on_fabric(network: Network, last: u8) -> Result<Self> {
        let number = network.number();
        Ok(Self { v4: Ipv4Addr::new(172, number, 0, last), v6: parse_v6(&format!("fd00:172:{number}::{last}"))? })
    }
}

/// Lines for `ip`: the pods of a node lie behind the node's addresses.
pub(super) fn pod_routes(node: u8, [via_v4, via_v6]: [IpAddr; 2]) -> [String; 2] {
    [
        format!("route replace 10.244.{node}.0/24 via {via_v4}"),
        format!("route replace fd00:10:244:{node}::/64 via {via_v6}"),
    ]
}

/// Link addresses of a pod's link: the node's end and the pod's end. Fixed, so that both
/// neighbour entries can be written before anyone asks.
pub(super) fn pod_macs(node: u8, index: u8) -> [String; 2] {
    [format!("0a:f4:{node:02x}:{index:02x}:00:01"), format!("0a:f4:{node:02x}:{index:02x}:00:02")]
}

fn parse_v6(text: &str) -> Result<Ipv6Addr> {
    text.parse().with_context(|| format!("address {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_alike_in_both_families() {
        let node = Addresses::node(2).unwrap();
        assert_eq!(node.v4.to_string(), "172.18.0.12");
        assert_eq!(node.v6.to_string(), "fd00:172:18::12");
        let client = Addresses::client(1).unwrap();
        assert_eq!(client.v6.to_string(), "fd00:172:18::101");
        let pod = Addresses::pod(2, 3).unwrap();
        assert_eq!(pod.v4.to_string(), "10.244.2.3");
        assert_eq!(pod.v6.to_string(), "fd00:10:244:2::3");
    }

    #[test]
    fn numbers_outside_the_plan_are_refused() {
        assert!(Addresses::node(0).is_err());
        assert!(Addresses::node(81).is_err());
        assert!(Addresses::client(151).is_err());
    }
}
