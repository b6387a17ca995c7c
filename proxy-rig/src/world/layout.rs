//! How pods hang on their node and how nodes reach each other, as the common CNIs do it. Called by `node` and `fabric`.

use std::net::IpAddr;

use anyhow::{Context, Result};

use super::{
    host::Host,
    netns,
    node::Node,
    plan::{self, Addresses, Network},
};

/// A node's bridge, its overlay device, and the routing table of its second uplink.
const BRIDGE: &str = "cni0";
const OVERLAY: &str = "vxlan.1";
const SECOND_TABLE: u8 = 19;
/// Room for the outer headers of VXLAN over IPv4.
const OVERLAY_MTU: u32 = 1450;

/// The layout of all nodes of a world. The default is the one drawn in module `world`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Layout {
    pub pods: PodLinks,
    /// Pods reach other nodes' pods through VXLAN only; the fabric and the clients know no pods.
    pub overlay: bool,
    /// Nodes have `eth1` on a network of its own, used by what has an address of it (policy routing).
    pub second_uplink: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PodLinks {
    /// A veth pair and a host route for each pod.
    #[default]
    Routed,
    /// Ports of a bridge that has the pods' gateway address.
    Bridged {
        /// Whether bridged frames pass the filters of IP (net.bridge.bridge-nf-call-iptables).
        netfilter: bool,
    },
}

impl Layout {
    pub(super) fn pod_mtu(self) -> u32 {
        if self.overlay { OVERLAY_MTU } else { 1500 }
    }
}

impl Node {
    /// What the layout has on a node before its first pod.
    pub(super) fn build_layout(&self) -> Result<()> {
        if let PodLinks::Bridged { netfilter } = self.layout().pods {
            let call = if netfilter { "1" } else { "0" };
            netns::sysctls(
                self.netns(),
                &[("net/bridge/bridge-nf-call-iptables", call), ("net/bridge/bridge-nf-call-ip6tables", call)],
            )?;
            let own = Addresses::bridge(self.index())?;
            self.ip(&[
                format!("link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"),
                format!("link set {BRIDGE} mtu {} up", self.layout().pod_mtu()),
                format!("addr add {}/24 dev {BRIDGE}", own.v4),
                format!("addr add {}/64 dev {BRIDGE} nodad", own.v6),
            ])?;
        }
        if self.layout().overlay {
            let own = Addresses::overlay(self.index())?;
            self.ip(&[
                format!(
                    "link add {OVERLAY} address {} type vxlan id 1 dstport 8472 local {} dev eth0 nolearning",
                    overlay_mac(self.index()),
                    self.ipv4()
                ),
                format!("link set {OVERLAY} mtu {OVERLAY_MTU} up"),
                format!("addr add {}/32 dev {OVERLAY}", own.v4),
                format!("addr add {}/128 dev {OVERLAY} nodad", own.v6),
            ])?;
        }
        Ok(())
    }

    /// Links a pod to the node's bridge.
    pub(super) fn bridge_pod(&self, pod: &Host, ifname: &str, [node_mac, pod_mac]: &[String; 2]) -> Result<()> {
        let [v4, v6] = pod.addresses();
        let gateway = Addresses::bridge(self.index())?;
        let mtu = self.layout().pod_mtu();
        self.ip(&[
            format!(
                "link add {ifname} mtu {mtu} address {node_mac} type veth peer name eth0 mtu {mtu} address {pod_mac} netns {}",
                pod.netns()
            ),
            format!("link set {ifname} master {BRIDGE} up"),
        ])?;
        pod.ip(&[
            "link set lo up".into(),
            "link set eth0 up".into(),
            format!("addr add {v4}/24 dev eth0"),
            format!("addr add {v6}/64 dev eth0 nodad"),
            format!("route add default via {}", gateway.v4),
            format!("route add default via {}", gateway.v6),
        ])
    }

    /// The way to another node's pods.
    pub(super) fn reach_pods_of(&self, other: &Self) -> Result<()> {
        if !self.layout().overlay {
            return self.route_to_pods_of(other);
        }
        let (index, mac) = (other.index(), overlay_mac(other.index()));
        let via = Addresses::overlay(index)?;
        netns::add_fdb(self.netns(), OVERLAY, &mac, &other.ipv4().to_string())?;
        let routes = plan::pod_routes(index, [via.v4.into(), via.v6.into()]);
        self.ip(&[
            format!("neigh replace {} lladdr {mac} dev {OVERLAY} nud permanent", via.v4),
            format!("neigh replace {} lladdr {mac} dev {OVERLAY} nud permanent", via.v6),
        ])?;
        self.ip(&routes.map(|route| format!("{route} dev {OVERLAY} onlink")))
    }

    /// Policy routing: what has an address of the second network leaves by it; everything else by the first.
    pub(super) fn route_second_uplink(&self) -> Result<()> {
        let network = Network::Second;
        self.ip(&[
            format!("route add default via {} dev eth1 table {SECOND_TABLE}", network.gateway_v4()),
            format!("route add default via {} dev eth1 table {SECOND_TABLE}", network.gateway_v6()),
        ])?;
        for address in self.second_addresses()? {
            self.use_second_uplink(address)?;
        }
        Ok(())
    }

    /// Packets from `source` leave by the second uplink.
    pub fn use_second_uplink(&self, source: IpAddr) -> Result<()> {
        let family = if source.is_ipv4() { "-4" } else { "-6" };
        netns::ip(
            self.netns(),
            &[family, "rule", "add", "from", &source.to_string(), "lookup", &SECOND_TABLE.to_string()],
        )
    }

    /// The node's addresses on its second uplink.
    pub fn second_addresses(&self) -> Result<[IpAddr; 2]> {
        let addresses = Addresses::node_on(Network::Second, self.index()).context("second uplink")?;
        Ok([addresses.v4.into(), addresses.v6.into()])
    }
}

fn overlay_mac(node: u8) -> String {
    format!("0a:58:0a:f4:{node:02x}:fd")
}
