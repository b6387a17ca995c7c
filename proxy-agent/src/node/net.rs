//! The present state of the node's network namespace: links, their addresses, routes. [`super::watch`] sends the changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    routes::{Route, RouteKey, RouteTable},
    source_filter::{ALL_LINKS, STRICT},
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// IFLA_INFO_KIND: `veth`, `vxlan`, ...; none for hardware.
    pub kind: Option<String>,
    /// Bytes, without the link header.
    pub mtu: u32,
    pub up: bool,
    pub loopback: bool,
    /// Frames start with an Ethernet header. The tc programs read no others: tun, ipip, wireguard and the like are left alone.
    pub ethernet: bool,
}

/// One message of the kernel, or a whole dump.
#[derive(Clone, Debug)]
pub enum NetChange {
    /// Everything anew: at start, and after messages were lost.
    All(Box<NodeNet>),
    Link(Link),
    LinkGone(u32),
    /// `later`: a secondary, temporary or deprecated address, which is nobody's first choice as a source.
    Address {
        link: u32,
        address: IpAddr,
        later: bool,
    },
    AddressGone {
        link: u32,
        address: IpAddr,
    },
    Route(Route),
    RouteGone(RouteKey),
    /// rp_filter of one link, or of all ([`ALL_LINKS`](super::source_filter::ALL_LINKS)).
    SourceFilter {
        link: i32,
        value: i32,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeNet {
    links: BTreeMap<u32, Link>,
    /// In the order in which they serve as source addresses: (is a late choice, address).
    addresses: BTreeMap<u32, Vec<(bool, IpAddr)>>,
    routes: RouteTable,
    /// net.ipv4.conf.*.rp_filter.
    source_filters: BTreeMap<i32, i32>,
}

impl NodeNet {
    /// Returns whether anything changed.
    pub fn apply(&mut self, change: NetChange) -> bool {
        match change {
            NetChange::All(mut net) => {
                // Told apart from the rest.
                net.source_filters = std::mem::take(&mut self.source_filters);
                self.source_filters.clone_from(&net.source_filters);
                let changed = *self != *net;
                *self = *net;
                return changed;
            }
            NetChange::Link(link) => return self.insert_link(link),
            NetChange::LinkGone(index) => {
                self.routes.remove_link(index);
                self.addresses.remove(&index);
                self.source_filters.remove(&index.cast_signed());
                return self.links.remove(&index).is_some();
            }
            NetChange::Address { link, address, later } => {
                let of_link = self.addresses.entry(link).or_default();
                if of_link.iter().any(|(_, known)| *known == address) {
                    return false;
                }
                let later = later || is_link_local(address);
                of_link.insert(of_link.partition_point(|(known, _)| *known <= later), (later, address));
            }
            NetChange::AddressGone { link, address } => {
                let Some(of_link) = self.addresses.get_mut(&link) else { return false };
                let before = of_link.len();
                of_link.retain(|(_, known)| *known != address);
                return of_link.len() != before;
            }
            NetChange::Route(route) => self.routes.insert(route),
            NetChange::RouteGone(key) => self.routes.remove(&key),
            NetChange::SourceFilter { link, value } => return self.source_filters.insert(link, value) != Some(value),
        }
        true
    }

    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.get(&index)
    }

    pub fn routes(&self) -> &RouteTable {
        &self.routes
    }

    /// Addresses of one link, best source address first.
    pub fn addresses_of(&self, index: u32) -> impl Iterator<Item = IpAddr> {
        self.addresses.get(&index).into_iter().flatten().map(|(_, address)| *address)
    }

    /// All addresses of the node, loopback and link-local ones included.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.addresses.values().flatten().map(|(_, address)| *address).collect()
    }

    /// True if the link drops packets whose source is not reached by it. The higher one of its own value and that for all links
    /// counts.
    pub fn is_strict(&self, index: u32) -> bool {
        let value = |link: i32| self.source_filters.get(&link).copied().unwrap_or(0);
        value(ALL_LINKS).max(value(index.cast_signed())) == STRICT
    }

    fn insert_link(&mut self, link: Link) -> bool {
        if self.links.get(&link.index) == Some(&link) {
            return false;
        }
        if !link.up {
            self.routes.remove_link(link.index);
        }
        if !link.ethernet && !self.links.contains_key(&link.index) {
            tracing::warn!(
                interface = link.name,
                kind = link.kind,
                "frames without an Ethernet header: packets to Services that come in here are not translated"
            );
        }
        self.links.insert(link.index, link);
        true
    }
}

/// Link-local addresses are no address to be called by from elsewhere.
pub(super) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_higher_value_counts() {
        for (all, link, strict) in
            [(0, 0, false), (0, 1, true), (1, 0, true), (2, 1, false), (1, 2, false), (2, 2, false)]
        {
            let mut net = NodeNet::default();
            net.apply(NetChange::SourceFilter { link: ALL_LINKS, value: all });
            net.apply(NetChange::SourceFilter { link: 7, value: link });
            net.apply(NetChange::All(Box::default()));
            assert_eq!(net.is_strict(7), strict, "all {all}, link {link}");
        }
    }

    #[test]
    fn links_and_addresses_come_and_go() {
        let mut net = NodeNet::default();
        let link =
            Link { index: 2, name: "eth0".into(), kind: None, mtu: 1500, up: true, loopback: false, ethernet: true };
        assert!(net.apply(NetChange::Link(link.clone())));
        assert!(!net.apply(NetChange::Link(link)));
        for (address, later) in [("fe80::1", false), ("192.0.2.9", true), ("192.0.2.1", false)] {
            assert!(net.apply(NetChange::Address { link: 2, address: ip(address), later }));
        }
        assert!(!net.apply(NetChange::Address { link: 2, address: ip("192.0.2.9"), later: false }));
        assert_eq!(net.addresses().len(), 3);
        assert_eq!(net.addresses_of(2).next(), Some(ip("192.0.2.1")));
        assert!(net.apply(NetChange::AddressGone { link: 2, address: ip("192.0.2.9") }));
        assert!(!net.apply(NetChange::AddressGone { link: 2, address: ip("192.0.2.9") }));
        assert!(net.apply(NetChange::LinkGone(2)));
        assert!(net.addresses().is_empty() && net.link(2).is_none());
    }
}
