//! What the node's state means for the maps: IFACES, the node's part of ADDRS, and which endpoints are direct.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    str::FromStr,
};

use ipnet::IpNet;
use proxy_common::{
    abi::{ADDR_NODE, ADDR_NODEPORT, IFACE_STRICT, Iface, IfaceRole, LOOPBACK},
    net::{Address, Ipv4, Ipv6},
};

use super::{
    net::{Link, NetChange, NodeNet, is_link_local},
    roles::{RoleRules, role_of},
};

/// On which of the node's addresses NodePorts are served (`--nodeport-addresses`, rule 19).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Per family, one address of the Node object.
    #[default]
    Primary,
    /// Those in one of these; a family that none of them belongs to is not filtered.
    Cidrs(Vec<IpNet>),
    /// Both of these, and no others.
    PrimaryAnd(Vec<IpNet>),
}

impl NodePortAddresses {
    pub fn of(primary: bool, cidrs: Vec<IpNet>) -> Self {
        match primary {
            true if cidrs.is_empty() => Self::Primary,
            true => Self::PrimaryAnd(cidrs),
            false => Self::Cidrs(cidrs),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("expected `primary` or CIDRs separated by commas, got {0:?}")]
pub struct NodePortAddressesError(String);

impl FromStr for NodePortAddresses {
    type Err = NodePortAddressesError;

    fn from_str(text: &str) -> Result<Self, NodePortAddressesError> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let (primary, cidrs): (Vec<_>, Vec<_>) = parts.partition(|part| *part == "primary");
        let parse = |part: &str| part.parse().map_err(|_| NodePortAddressesError(part.to_owned()));
        let cidrs: Vec<IpNet> = cidrs.into_iter().map(parse).collect::<Result<_, _>>()?;
        Ok(Self::of(!primary.is_empty(), cidrs))
    }
}

/// The node's network as of now. The agent's main loop owns it.
#[derive(Clone, Debug, Default)]
pub struct NodeView {
    net: NodeNet,
    rules: RoleRules,
    node_ports: NodePortAddresses,
    /// status.addresses of the Node object, InternalIPs first.
    node_ips: Vec<IpAddr>,
    /// Every interface that carries our programs.
    roles: BTreeMap<u32, IfaceRole>,
    own: BTreeSet<IpAddr>,
}

impl NodeView {
    pub fn new(rules: RoleRules, node_ports: NodePortAddresses) -> Self {
        Self { rules, node_ports, ..Self::default() }
    }

    /// Returns whether anything changed.
    pub fn apply(&mut self, change: NetChange) -> bool {
        let changed = self.net.apply(change);
        if changed {
            self.refresh();
        }
        changed
    }

    /// The addresses of the own Node object, InternalIPs first. Returns whether they changed.
    pub fn set_node_ips(&mut self, node_ips: Vec<IpAddr>) -> bool {
        let changed = self.node_ips != node_ips;
        if changed {
            self.node_ips = node_ips;
            self.refresh();
        }
        changed
    }

    pub fn net(&self) -> &NodeNet {
        &self.net
    }

    /// Index and role of every interface that is to carry our programs.
    pub fn roles(&self) -> &BTreeMap<u32, IfaceRole> {
        &self.roles
    }

    /// lo, if it is to carry the egress program: packets between addresses of the node pass no other interface. It has no role.
    pub fn loopback(&self) -> Option<&Link> {
        let excluded = |link: &&Link| self.rules.exclude.matches(&link.name);
        self.net.link(LOOPBACK).filter(|link| link.loopback && !excluded(link))
    }

    /// The content of IFACES.
    pub fn ifaces(&self) -> BTreeMap<u32, Iface> {
        let (primary_v4, primary_v6) = (self.primary_v4(), self.primary_v6());
        let of = |index: u32, role: IfaceRole| Iface {
            role,
            flags: if self.net.is_strict(index) { IFACE_STRICT } else { 0 },
            zero: [0; 2],
            mtu: self.net.link(index).map_or(0, |link| link.mtu),
            addr_v4: self.source_on(index).find_map(v4).or(primary_v4).unwrap_or(Ipv4::ZERO),
            addr_v6: self.source_on(index).find_map(v6).or(primary_v6).unwrap_or(Ipv6::ZERO),
        };
        self.roles.iter().map(|(index, role)| (*index, of(*index, *role))).collect()
    }

    /// The node's part of ADDRS: every own address with its `ADDR_*` flags. Loopback addresses are served at connect time
    /// only, and link-local IPv6 addresses, of which each interface has one, not at all.
    pub fn addresses(&self) -> BTreeMap<IpAddr, u32> {
        let listed = |address: &&IpAddr| !(address.is_loopback() || address.is_ipv6() && is_link_local(**address));
        let flags =
            |address: IpAddr| if self.serves_node_ports(address) { ADDR_NODE | ADDR_NODEPORT } else { ADDR_NODE };
        self.own.iter().filter(listed).map(|address| (*address, flags(*address))).collect()
    }

    /// True if replies of this endpoint come back by an interface that carries our programs (or from a socket of the node).
    pub fn is_direct(&self, address: IpAddr) -> bool {
        let leads_to_pod = |link: &u32| self.roles.get(link) == Some(&IfaceRole::Pod);
        let by_route = || self.net.routes().links_to(address);
        self.own.contains(&address)
            || by_route().is_some_and(|links| !links.is_empty() && links.iter().all(leads_to_pod))
    }

    /// Per family one address: of the Node object if it is bound here, else of the interface with the default route.
    fn primary(&self, of_family: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
        let of_node = self.node_ips.iter().find(|ip| of_family(ip) && self.own.contains(ip));
        let uplinks = |with_default: bool| {
            let wanted = move |(index, role): &(&u32, &IfaceRole)| {
                **role == IfaceRole::Uplink && self.net.routes().is_default(**index) == with_default
            };
            self.roles.iter().filter(wanted).flat_map(|(index, _)| self.source_on(*index))
        };
        of_node.copied().or_else(|| uplinks(true).chain(uplinks(false)).find(|address| of_family(address)))
    }

    fn primary_v4(&self) -> Option<Ipv4> {
        self.primary(IpAddr::is_ipv4).and_then(v4)
    }

    fn primary_v6(&self) -> Option<Ipv6> {
        self.primary(IpAddr::is_ipv6).and_then(v6)
    }

    fn source_on(&self, index: u32) -> impl Iterator<Item = IpAddr> {
        self.net.addresses_of(index).filter(|address| !is_link_local(*address) && !address.is_loopback())
    }

    fn serves_node_ports(&self, address: IpAddr) -> bool {
        let is_primary = || self.primary(|ip| ip.is_ipv4() == address.is_ipv4()) == Some(address);
        match &self.node_ports {
            NodePortAddresses::Primary => is_primary(),
            NodePortAddresses::PrimaryAnd(cidrs) => is_primary() || cidrs.iter().any(|cidr| cidr.contains(&address)),
            NodePortAddresses::Cidrs(cidrs) => {
                let mut of_family = cidrs.iter().filter(|cidr| cidr.addr().is_ipv4() == address.is_ipv4()).peekable();
                of_family.peek().is_none() || of_family.any(|cidr| cidr.contains(&address))
            }
        }
    }

    fn refresh(&mut self) {
        self.own = self.net.addresses();
        let role = |link| {
            let link: &super::Link = link;
            let carries_node = self.net.addresses_of(link.index).any(|address| self.node_ips.contains(&address));
            let role = role_of(link, &self.rules, carries_node, self.net.routes().is_default(link.index))?;
            Some((link.index, role))
        };
        self.roles = self.net.links().filter_map(role).collect();
    }
}

fn v4(address: IpAddr) -> Option<Ipv4> {
    match address {
        IpAddr::V4(v4) => Some(v4.into()),
        IpAddr::V6(_) => None,
    }
}

fn v6(address: IpAddr) -> Option<Ipv6> {
    match address {
        IpAddr::V6(v6) => Some(v6.into()),
        IpAddr::V4(_) => None,
    }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
