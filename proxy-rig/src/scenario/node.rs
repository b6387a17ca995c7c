//! The simulated node of a scenario: its links, addresses and routes, as the agent's own code sees them.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use proxy_agent::node::{Link, NetChange, NodeNet, NodePortAddresses, NodeView, Patterns, RoleRules, Route, RouteKey};
use proxy_common::abi::{CONFIG_MASQUERADE_ALL, Config, LOOPBACK};

use super::{
    file::{NodeSpec, Role},
    tables::Surroundings,
};

/// Index of the first interface behind lo.
const FIRST_INDEX: u32 = 11;
/// When a scenario begins, in seconds since boot.
const START_S: u64 = 1_000_000;
const SEED: u32 = 0x5745_4952;
const MTU: u32 = 1500;

/// An address that comes or goes.
pub(super) struct AddressChange {
    pub(super) add: bool,
    pub(super) interface: String,
    pub(super) net: IpNet,
}

#[derive(Clone, Debug)]
pub struct SimulatedNode {
    spec: NodeSpec,
    /// Interface name -> index.
    indices: BTreeMap<String, u32>,
    surroundings: Surroundings,
    config: Config,
}

impl SimulatedNode {
    pub fn new(spec: &NodeSpec) -> Result<Self> {
        let mut indices: BTreeMap<String, u32> =
            spec.interfaces.keys().zip(FIRST_INDEX..).map(|(name, index)| (name.clone(), index)).collect();
        indices.insert("lo".to_owned(), LOOPBACK);
        let mut routes = Vec::new();
        for (to, name) in &spec.routes {
            let index = indices.get(name).with_context(|| format!("route {to}: no interface {name}"))?;
            routes.push((*to, *index));
        }
        for (name, interface) in &spec.interfaces {
            for net in &interface.addresses {
                routes.push((net.trunc(), indices[name]));
            }
        }
        routes.sort_by_key(|(to, index)| (std::cmp::Reverse(to.prefix_len()), *index));
        let udp_sockets = spec.udp_sockets.iter().map(|socket| (socket.remote, socket.local)).collect();
        Ok(Self {
            spec: spec.clone(),
            indices,
            surroundings: Surroundings { routes, udp_sockets },
            config: config(spec)?,
        })
    }

    pub(crate) fn spec(&self) -> &NodeSpec {
        &self.spec
    }

    pub fn index_of(&self, interface: &str) -> Option<u32> {
        self.indices.get(interface).copied()
    }

    pub fn name_of(&self, index: u32) -> String {
        let name = self.indices.iter().find(|(_, it)| **it == index).map(|(name, _)| name.clone());
        name.unwrap_or_else(|| format!("interface {index}"))
    }

    /// `add INTERFACE CIDR` or `remove INTERFACE CIDR`, as the agent hears of it.
    pub(super) fn change(&self, text: &str) -> Result<(AddressChange, NetChange)> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [verb, interface, net] = words[..] else { bail!("expected `add|remove INTERFACE CIDR`, got {text:?}") };
        let link = self.index_of(interface).with_context(|| format!("interface {interface}"))?;
        let net: IpNet = net.parse().with_context(|| format!("address {net:?}"))?;
        ensure!(net.prefix_len() == net.max_prefix_len(), "{net}: only host addresses, which bring no route");
        let address = net.addr();
        let heard = match verb {
            "add" => NetChange::Address { link, address, later: false },
            "remove" => NetChange::AddressGone { link, address },
            _ => bail!("expected `add` or `remove`, got {verb:?}"),
        };
        Ok((AddressChange { add: verb == "add", interface: interface.to_owned(), net }, heard))
    }

    pub(super) fn surroundings(&self) -> &Surroundings {
        &self.surroundings
    }

    /// CONFIG as it is when the scenario begins.
    pub(super) fn config(&self) -> Config {
        self.config
    }

    /// The node's network as the agent would hear of it.
    pub(super) fn view(&self) -> Result<NodeView> {
        let role_patterns = |wanted: Role| {
            let names = self.spec.interfaces.iter().filter(|(_, it)| it.role == wanted).map(|(name, _)| name.as_str());
            names.collect::<Vec<_>>().join(",").parse::<Patterns>().context("interface names")
        };
        let rules = RoleRules {
            exclude: Patterns::default(),
            pod: role_patterns(Role::Pod)?,
            uplink: role_patterns(Role::Uplink)?,
        };
        let mut view = NodeView::new(rules, self.node_port_addresses()?);
        view.apply(NetChange::All(Box::new(self.net())));
        view.set_node_ips(self.spec.addresses.clone());
        Ok(view)
    }

    fn net(&self) -> NodeNet {
        let mut net = NodeNet::default();
        net.apply(NetChange::Link(link(1, "lo", None)));
        for address in ["127.0.0.1", "::1"].map(|text| text.parse::<IpAddr>().expect("invariant: an address")) {
            net.apply(NetChange::Address { link: 1, address, later: false });
        }
        for (name, interface) in &self.spec.interfaces {
            let index = self.indices[name];
            let kind = if interface.role == Role::Overlay { "vxlan" } else { "veth" };
            net.apply(NetChange::Link(link(index, name, Some(kind))));
            for address in &interface.addresses {
                net.apply(NetChange::Address { link: index, address: address.addr(), later: false });
            }
        }
        for (to, index) in &self.surroundings.routes {
            net.apply(NetChange::Route(Route { key: RouteKey { to: *to, metric: 0 }, links: vec![*index] }));
        }
        net
    }

    fn node_port_addresses(&self) -> Result<NodePortAddresses> {
        match self.spec.nodeport_addresses.join(",").as_str() {
            "" => Ok(NodePortAddresses::default()),
            text => Ok(text.parse()?),
        }
    }
}

fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind: kind.map(str::to_owned),
        mtu: MTU,
        up: true,
        loopback: name == "lo",
        ethernet: true,
    }
}

fn config(spec: &NodeSpec) -> Result<Config> {
    let mut config = Config { fixed_now_ns: START_S * 1_000_000_000, seed: SEED, ..Config::DEFAULT };
    if spec.masquerade_all {
        config.flags |= CONFIG_MASQUERADE_ALL;
    }
    if let Some(range) = &spec.snat_ports {
        let Some((first, last)) = range.split_once('-') else {
            bail!("snat-ports: expected FIRST-LAST, got {range:?}")
        };
        (config.snat_first, config.snat_last) = (first.parse()?, last.parse()?);
    }
    Ok(config)
}
