//! A node with an uplink, a bridge of pods, a routed pod and an overlay.

use super::*;
use crate::node::{Link, Route, RouteKey};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn view(node_ports: &str) -> NodeView {
    let mut view = NodeView::new(RoleRules::default(), node_ports.parse().unwrap());
    for (index, name, kind) in [
        (1, "lo", None),
        (2, "eth0", Some("veth")),
        (3, "cni0", Some("bridge")),
        (4, "veth-pod", Some("veth")),
        (5, "vxlan1", Some("vxlan")),
    ] {
        let loopback = name == "lo";
        let kind = kind.map(Into::into);
        view.apply(NetChange::Link(Link {
            index,
            name: name.into(),
            kind,
            mtu: 1500 - index,
            up: true,
            loopback,
            ethernet: true,
        }));
    }
    for (link, address) in [
        (1, "127.0.0.1"),
        (1, "::1"),
        (2, "192.0.2.1"),
        (2, "192.0.2.7"),
        (2, "2001:db8::1"),
        (2, "fe80::1"),
        (3, "10.244.1.1"),
    ] {
        view.apply(NetChange::Address { link, address: ip(address), later: false });
    }
    for (to, links) in
        [("0.0.0.0/0", &[2][..]), ("10.244.1.0/24", &[3]), ("10.244.0.0/16", &[5]), ("10.244.9.9/32", &[4])]
    {
        let key = RouteKey { to: to.parse().unwrap(), metric: 0 };
        view.apply(NetChange::Route(Route { key, links: links.to_vec() }));
    }
    view
}

#[test]
fn roles_and_interface_addresses() {
    let ifaces = view("primary").ifaces();
    let roles: Vec<_> = ifaces.iter().map(|(index, iface)| (*index, iface.role)).collect();
    assert_eq!(roles, [(2, IfaceRole::Uplink), (3, IfaceRole::Pod), (4, IfaceRole::Pod), (5, IfaceRole::Overlay)]);
    assert_eq!(ifaces[&2].addr_v4.to_string(), "192.0.2.1");
    assert_eq!(ifaces[&3].addr_v4.to_string(), "10.244.1.1");
    assert_eq!(ifaces[&4].addr_v4.to_string(), "192.0.2.1");
    assert_eq!(ifaces[&4].addr_v6.to_string(), "2001:db8::1");
    assert_eq!(ifaces[&4].mtu, 1496);
}

#[test]
fn direct_endpoints() {
    let view = view("primary");
    for (address, direct) in [
        ("10.244.1.7", true),
        ("10.244.9.9", true),
        ("10.244.2.7", false),
        ("192.0.2.1", true),
        ("192.0.2.50", false),
        ("2001:db8::99", false),
    ] {
        assert_eq!(view.is_direct(ip(address)), direct, "{address}");
    }
}

#[test]
fn primary_node_port_addresses_follow_the_node_object() {
    let mut view = view("primary");
    let served = |view: &NodeView| -> Vec<String> {
        let addresses = view.addresses();
        addresses.iter().filter(|(_, flags)| **flags & ADDR_NODEPORT != 0).map(|(a, _)| a.to_string()).collect()
    };
    assert_eq!(served(&view), ["192.0.2.1", "2001:db8::1"]);
    assert!(view.set_node_ips(vec![ip("203.0.113.5"), ip("192.0.2.7")]));
    assert_eq!(served(&view), ["192.0.2.7", "2001:db8::1"]);
    let all: Vec<_> = view.addresses().into_keys().map(|a| a.to_string()).collect();
    assert_eq!(all, ["10.244.1.1", "192.0.2.1", "192.0.2.7", "2001:db8::1"]);
}

#[test]
fn node_port_cidrs_filter_their_family_only() {
    let view = view("10.244.0.0/16");
    let addresses = view.addresses();
    for (address, served) in [("10.244.1.1", true), ("192.0.2.1", false), ("2001:db8::1", true)] {
        assert_eq!(addresses[&ip(address)] & ADDR_NODEPORT != 0, served, "{address}");
    }
    let view = self::view("primary,10.244.0.0/16");
    let addresses = view.addresses();
    for (address, served) in [("10.244.1.1", true), ("192.0.2.1", true), ("192.0.2.7", false), ("2001:db8::1", true)] {
        assert_eq!(addresses[&ip(address)] & ADDR_NODEPORT != 0, served, "{address}, with primary");
    }
    assert!("10.244.0.0/99".parse::<NodePortAddresses>().is_err());
}
