//! Which role an interface has. The role sets the scope of a packet's flow: traffic of pods is internal.

use proxy_common::abi::IfaceRole;

use super::{net::Link, patterns::Patterns};

/// What the flags say about interfaces.
#[derive(Clone, Debug, Default)]
pub struct RoleRules {
    pub exclude: Patterns,
    pub pod: Patterns,
    pub uplink: Patterns,
}

/// Kinds (IFLA_INFO_KIND) that carry traffic between nodes inside other packets.
const OVERLAY_KINDS: [&str; 4] = ["vxlan", "geneve", "gretap", "ip6gretap"];
/// Kinds by which pods and virtual machines hang on a node.
const POD_KINDS: [&str; 7] = ["veth", "bridge", "tun", "macvtap", "ipvtap", "macvlan", "netkit"];

/// `None` for an interface that is left alone. `carries_node` says whether it carries one of the Node object's addresses,
/// `default_route` whether a default route leaves by it.
pub fn role_of(link: &Link, rules: &RoleRules, carries_node: bool, default_route: bool) -> Option<IfaceRole> {
    if link.loopback || !link.ethernet || rules.exclude.matches(&link.name) {
        return None;
    }
    if rules.pod.matches(&link.name) {
        return Some(IfaceRole::Pod);
    }
    if rules.uplink.matches(&link.name) || carries_node || default_route {
        return Some(IfaceRole::Uplink);
    }
    Some(match link.kind.as_deref() {
        Some(kind) if OVERLAY_KINDS.contains(&kind) => IfaceRole::Overlay,
        Some(kind) if POD_KINDS.contains(&kind) => IfaceRole::Pod,
        _ => IfaceRole::Uplink,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, kind: Option<&str>) -> Link {
        let ethernet = !matches!(kind, Some("wireguard" | "ipip"));
        let kind = kind.map(Into::into);
        Link { index: 7, name: name.into(), kind, mtu: 1500, up: true, loopback: name == "lo", ethernet }
    }

    #[test]
    fn kinds_addresses_and_routes() {
        let rules = RoleRules::default();
        for (name, kind, node, default, role) in [
            ("lo", None, false, false, None),
            ("eth0", None, false, false, Some(IfaceRole::Uplink)),
            ("eth0", Some("veth"), true, false, Some(IfaceRole::Uplink)),
            ("veth1", Some("veth"), false, false, Some(IfaceRole::Pod)),
            ("cni0", Some("bridge"), false, false, Some(IfaceRole::Pod)),
            ("br0", Some("bridge"), false, true, Some(IfaceRole::Uplink)),
            ("flannel.1", Some("vxlan"), false, false, Some(IfaceRole::Overlay)),
            ("gre1", Some("gretap"), true, false, Some(IfaceRole::Uplink)),
            // No Ethernet header: left alone, whatever it carries.
            ("wg0", Some("wireguard"), true, false, None),
            ("tunl0", Some("ipip"), false, false, None),
            ("tap0", Some("tun"), false, false, Some(IfaceRole::Pod)),
            ("bond0.7", Some("vlan"), false, false, Some(IfaceRole::Uplink)),
        ] {
            assert_eq!(role_of(&link(name, kind), &rules, node, default), role, "{name} {kind:?}");
        }
    }

    #[test]
    fn flags_override() {
        let rules = RoleRules {
            exclude: "docker*".parse().unwrap(),
            pod: "vlan.pod*".parse().unwrap(),
            uplink: "veth-up".parse().unwrap(),
        };
        assert_eq!(role_of(&link("docker0", Some("bridge")), &rules, true, true), None);
        assert_eq!(role_of(&link("vlan.pod3", Some("vlan")), &rules, true, false), Some(IfaceRole::Pod));
        assert_eq!(role_of(&link("veth-up", Some("veth")), &rules, false, false), Some(IfaceRole::Uplink));
    }
}
