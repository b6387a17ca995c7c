//! The networks between nodes and clients: bridges in a namespace of their own, which routes between them.

use anyhow::{Context, Result};

use super::{
    FABRIC, World,
    host::Host,
    netns,
    node::{Node, Pod, PodPath},
    plan::{self, Addresses, Network},
};

impl World {
    /// The switch. Its bridge is also the nodes' default gateway, one that answers
    /// "unreachable" to everything it does not know, as the edge of a closed network does.
    pub(super) fn build_fabric(&self) -> Result<()> {
        let netns = self.run.netns_name(FABRIC);
        netns::add(&netns)?;
        netns::sysctls(
            &netns,
            &[
                ("net/ipv6/conf/default/accept_dad", "0"),
                ("net/ipv4/ip_forward", "1"),
                ("net/ipv4/conf/all/send_redirects", "0"),
                ("net/ipv4/conf/default/send_redirects", "0"),
                ("net/ipv6/conf/all/forwarding", "1"),
            ],
        )?;
        let mut lines = vec!["link set lo up".to_owned()];
        let networks: &[Network] = if self.layout.second_uplink {
            &[Network::First, Network::Second, Network::Far]
        } else {
            &[Network::First]
        };
        for network in networks {
            let bridge = network.bridge();
            lines.extend([
                // Snooping would eat neighbour solicitations until the first report was seen.
                format!("link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"),
                format!("link set {bridge} up"),
                format!("addr add {}/{} dev {bridge}", network.gateway_v4(), plan::FABRIC_LEN_V4),
                format!("addr add {}/{} dev {bridge} nodad", network.gateway_v6(), plan::FABRIC_LEN_V6),
            ]);
        }
        netns::ip_batch(&netns, &lines)
    }

    /// Links a host to one of the networks.
    pub(super) fn join_fabric(&self, host: &Host, network: Network, dev: &str, addresses: &Addresses) -> Result<()> {
        self.plug(host, network, dev)?;
        netns::ip_batch(
            host.netns(),
            &[
                "link set lo up".into(),
                format!("link set {dev} up"),
                format!("addr add {}/{} dev {dev}", addresses.v4, plan::FABRIC_LEN_V4),
                format!("addr add {}/{} dev {dev} nodad", addresses.v6, plan::FABRIC_LEN_V6),
            ],
        )
    }

    fn plug(&self, host: &Host, network: Network, dev: &str) -> Result<()> {
        let port = port(network, host);
        netns::ip_batch(
            &self.run.netns_name(FABRIC),
            &[
                format!("link add {port} type veth peer name {dev} netns {}", host.netns()),
                format!("link set {port} master {} up", network.bridge()),
            ],
        )
    }

    /// Adds a client that reaches the nodes through a gateway, by both uplinks of each (`Layout::second_uplink`).
    pub fn add_far_client(&self, name: &str) -> Result<Host> {
        let mut members = self.lock();
        self.check_name(&members, name)?;
        let index = u8::try_from(members.clients.len() + 1).context("too many clients")?;
        let addresses = Addresses::client_on(Network::Far, index)?;
        let client = Host::client(&self.run, name, &addresses)?;
        self.join_fabric(&client, Network::Far, "eth0", &addresses)?;
        client.ip(&[
            format!("route add default via {}", Network::Far.gateway_v4()),
            format!("route add default via {}", Network::Far.gateway_v6()),
        ])?;
        members.clients.push(client.clone());
        Ok(client)
    }

    /// Adds a pod of the node that hangs on the fabric beside the node, as a macvlan interface does: what it sends
    /// does not pass the node. (A true macvlan child could not talk to its node at all.)
    pub fn add_attached_pod(&self, node: &Node, name: &str, path: PodPath) -> Result<Pod> {
        let pod = node.add_attached_pod(name, path)?;
        let [v4, v6] = pod.addresses();
        self.plug(&pod, Network::First, "eth0")?;
        let network = Network::First;
        pod.ip(&[
            "link set lo up".into(),
            "link set eth0 up".into(),
            format!("addr add {v4}/32 dev eth0"),
            format!("addr add {v6}/128 dev eth0 nodad"),
            format!("route add {} dev eth0", network.cidr_v4()),
            format!("route add {} dev eth0", network.cidr_v6()),
            format!("route add default via {}", network.gateway_v4()),
            format!("route add default via {}", network.gateway_v6()),
        ])?;
        node.ip(&[format!("route add {v4}/32 dev eth0"), format!("route add {v6}/128 dev eth0")])?;
        Ok(pod)
    }

    /// Makes the network drop what the node sends by its first (or second) uplink from any other source.
    pub fn accept_sources(&self, node: &Node, second: bool, sources_v4: &[&str], sources_v6: &[&str]) -> Result<()> {
        let port = port(if second { Network::Second } else { Network::First }, node);
        let (v4, v6) = (sources_v4.join(", "), sources_v6.join(", "));
        let rules = format!(
            "table netdev sources {{\n chain {chain} {{\n\
             type filter hook ingress device \"{port}\" priority 0\n\
             ip saddr != {{ {v4} }} counter drop\n\
             ip6 saddr != {{ fe80::/10, ::, {v6} }} counter drop\n }}\n}}\n",
            chain = port.replace('-', "_"),
        );
        netns::nft(&self.run.netns_name(FABRIC), &rules)
    }

    /// Makes the network route `cidr` to the node's first (or second) uplink.
    pub fn route(&self, cidr: &str, node: &Node, second: bool) -> Result<()> {
        let [v4, v6] = if second { node.second_addresses()? } else { node.addresses() };
        let via = if cidr.contains(':') { v6 } else { v4 };
        netns::ip_batch(&self.run.netns_name(FABRIC), &[format!("route replace {cidr} via {via}")])
    }
}

/// The fabric's end of a host's link; names of hosts are unique in the world.
fn port(network: Network, host: &Host) -> String {
    let letter = match network {
        Network::First => 'p',
        Network::Second => 'q',
        Network::Far => 'f',
    };
    netns::ifname(&format!("{letter}-{}", host.name()))
}
