//! Which endpoints a service-port may use: one pure function, called by the build of the desired state.
//!
//! Kubernetes' rules: duplicates of an address and port, topology hints, and the fallback to endpoints
//! that terminate but still serve, for the cluster-wide and the node-local set separately.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

pub use crate::model::NodeFacts;
use crate::model::{Endpoint, EndpointSlice, Family, Protocol};

/// One address and port behind a service-port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortEndpoint {
    pub address: IpAddr,
    pub port: u16,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// On this node, told by nodeName and never by address.
    pub local: bool,
    pub zone: Option<Arc<str>>,
    pub weight: u16,
}

/// The endpoints of one service-port in one family. `cluster` and `local` are indices into `all`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortEndpoints {
    /// What a policy of Cluster may use.
    pub cluster: Vec<usize>,
    /// What a policy of Local may use on this node.
    pub local: Vec<usize>,
    /// Every endpoint that is Ready or Serving, by address and port.
    pub all: Vec<PortEndpoint>,
}

/// Indices into what was given to [`categorize_endpoints`], ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Categories {
    pub cluster: Vec<usize>,
    pub local: Vec<usize>,
    pub all_serving: Vec<usize>,
}

/// An endpoint of a slice together with the port that it serves there.
#[derive(Clone, Copy, Debug)]
pub struct EndpointRef<'a> {
    pub endpoint: &'a Endpoint,
    pub port: u16,
}

/// The endpoints of the port `port` (by name) and `protocol`, united over the slices of one Service.
pub fn endpoints_of_port<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    port: &str,
    protocol: Protocol,
    family: Family,
    node: &NodeFacts,
) -> PortEndpoints {
    let united = unite(slices, port, protocol, family);
    let categories = categorize_endpoints(&united, node);
    let mut place = vec![0; united.len()];
    for (new, old) in categories.all_serving.iter().enumerate() {
        place[*old] = new;
    }
    let moved = |indices: Vec<usize>| indices.into_iter().map(|old| place[old]).collect();
    PortEndpoints {
        all: categories.all_serving.iter().map(|old| port_endpoint(&united[*old], node)).collect(),
        cluster: moved(categories.cluster),
        local: moved(categories.local),
    }
}

/// Sorts the endpoints of one service-port and family into what Cluster and Local traffic may use.
///
/// An endpoint is usable while it is Ready. Only if a set has no Ready endpoint do those take its place
/// that are Serving while they terminate; topology hints do not count then.
pub fn categorize_endpoints(endpoints: &[EndpointRef<'_>], node: &NodeFacts) -> Categories {
    let indices = |wanted: &dyn Fn(&Endpoint) -> bool| -> Vec<usize> {
        endpoints.iter().enumerate().filter(|(_, item)| wanted(item.endpoint)).map(|(index, _)| index).collect()
    };
    let topology = Topology::of(endpoints, node);
    let or_terminating = |ready: Vec<usize>, eligible: &dyn Fn(&Endpoint) -> bool| {
        if ready.is_empty() { indices(&|it| it.serving && it.terminating && eligible(it)) } else { ready }
    };
    let local = |endpoint: &Endpoint| is_local(endpoint, node);
    Categories {
        cluster: or_terminating(indices(&|it| it.ready && topology.admits(it, node)), &|_| true),
        local: or_terminating(indices(&|it| it.ready && local(it)), &local),
        all_serving: indices(&|it| it.ready || it.serving),
    }
}

/// How far hints narrow the cluster-wide set. Decided once for the whole set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    SameNode,
    SameZone,
    Anywhere,
}

impl Topology {
    /// Hints are used only if every Ready endpoint carries them and one names our place: a partly hinted
    /// set is a controller in the middle of its work, and to follow it would overload a few endpoints.
    fn of(endpoints: &[EndpointRef<'_>], node: &NodeFacts) -> Self {
        let ready = || endpoints.iter().map(|item| item.endpoint).filter(|endpoint| endpoint.ready);
        let usable = |level: Topology| {
            ready().all(|endpoint| level.is_hinted(endpoint)) && ready().any(|endpoint| level.admits(endpoint, node))
        };
        [Topology::SameNode, Topology::SameZone].into_iter().find(|level| usable(*level)).unwrap_or(Topology::Anywhere)
    }

    fn is_hinted(self, endpoint: &Endpoint) -> bool {
        match self {
            Topology::SameNode => !endpoint.node_hints.is_empty(),
            Topology::SameZone => !endpoint.zone_hints.is_empty(),
            Topology::Anywhere => true,
        }
    }

    fn admits(self, endpoint: &Endpoint, node: &NodeFacts) -> bool {
        match self {
            Topology::SameNode => endpoint.node_hints.contains(&node.name),
            Topology::SameZone => node.zone.as_ref().is_some_and(|zone| endpoint.zone_hints.contains(zone)),
            Topology::Anywhere => true,
        }
    }
}

/// One entry per address and port, in that order.
fn unite<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    port: &str,
    protocol: Protocol,
    family: Family,
) -> Vec<EndpointRef<'a>> {
    let mut by_address: BTreeMap<(IpAddr, u16), (&'a str, EndpointRef<'a>)> = BTreeMap::new();
    for slice in slices.filter(|slice| slice.family == family) {
        let ports = slice.ports.iter().filter(|it| &*it.name == port && it.protocol == protocol);
        for port in ports.map(|it| it.port) {
            for endpoint in &slice.endpoints {
                let candidate = (&*slice.name, EndpointRef { endpoint, port });
                by_address
                    .entry((endpoint.address, port))
                    .and_modify(|held| {
                        if replaces(candidate, *held) {
                            *held = candidate;
                        }
                    })
                    .or_insert(candidate);
            }
        }
    }
    by_address.into_values().map(|(_, endpoint)| endpoint).collect()
}

/// Whether the second copy of an address and port takes the place of the first: an address is reused by
/// a new pod while the old one still terminates, and then the running pod is meant. Between copies
/// of one kind the smaller slice name wins, so that the order of arrival makes no difference.
fn replaces(candidate: (&str, EndpointRef<'_>), held: (&str, EndpointRef<'_>)) -> bool {
    match (held.1.endpoint.terminating, candidate.1.endpoint.terminating) {
        (true, false) => true,
        (false, true) => false,
        _ => candidate.0 < held.0,
    }
}

fn is_local(endpoint: &Endpoint, node: &NodeFacts) -> bool {
    endpoint.node.as_ref() == Some(&node.name)
}

fn port_endpoint(item: &EndpointRef<'_>, node: &NodeFacts) -> PortEndpoint {
    let endpoint = item.endpoint;
    PortEndpoint {
        address: endpoint.address,
        port: item.port,
        ready: endpoint.ready,
        serving: endpoint.serving,
        terminating: endpoint.terminating,
        local: is_local(endpoint, node),
        zone: endpoint.zone.clone(),
        weight: endpoint.weight,
    }
}

#[cfg(test)]
#[path = "endpoints_tests.rs"]
mod tests;
