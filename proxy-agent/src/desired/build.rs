//! [`build_desired`]: Service and EndpointSlices -> frontends and backends. Pure; called by the agent's main
//! loop and by the model executor of the scenarios.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use proxy_common::{
    abi::{BACKEND_CLUSTER_SET, BACKEND_DIRECT, BACKEND_IS_LOCAL, BACKEND_LOCAL_SET, FrontendKind, ServiceKey},
    net::{Address, V4, V6},
};

use super::{
    endpoints::{NodeFacts, PortEndpoints, endpoints_of_port},
    service::{Frontend, PortBackend, PortDesired, PortFamily, ServiceDesired, SetKind, Warning},
};
use crate::{
    dataplane::MapFamily,
    model::{EndpointSlice, Family, Service, ServicePort, ServicePortName, TrafficPolicy},
};

/// What the desired state of a Service depends on besides its objects.
pub struct Facts<'a> {
    pub node: &'a NodeFacts,
    /// Whether packets to and from this address pass our hooks: it is one of the node's own addresses, or routed
    /// to an interface of role pod. Asked for local endpoints only.
    pub is_direct: &'a dyn Fn(IpAddr) -> bool,
    /// The node's own addresses: a node inside a source range may reach a load balancer VIP from that VIP.
    pub node_addresses: &'a [IpAddr],
    /// External and load balancer addresses are accepted from these ranges; empty means from everywhere.
    pub external_ranges: &'a [IpNet],
}

/// Everything that `service` should have in the maps of this node.
pub fn build_desired<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    facts: &Facts<'_>,
) -> ServiceDesired {
    let mut warnings = BTreeSet::new();
    let mut ports = Vec::with_capacity(service.ports.len());
    let external = accepted(&service.external_ips, facts, &mut warnings);
    let load_balancer = accepted(&service.load_balancer_ips, facts, &mut warnings);
    let addresses = Addresses { external: &external, load_balancer: &load_balancer };
    for port in &service.ports {
        let name = ServicePortName::new(service.name.clone(), port.name.clone(), port.protocol);
        ports.push(PortDesired {
            name,
            affinity_s: service.affinity_timeout_s.unwrap_or(0),
            algorithm: service.algorithm,
            v4: port_family::<V4>(service, port, &addresses, slices.clone(), facts),
            v6: port_family::<V6>(service, port, &addresses, slices.clone(), facts),
        });
    }
    ServiceDesired {
        name: service.name.clone(),
        created: service.created,
        cluster_ips: service.cluster_ips.clone(),
        ports,
        warnings: warnings.into_iter().collect(),
    }
}

/// Addresses of a Service that outsiders call, already filtered.
struct Addresses<'a> {
    external: &'a [IpAddr],
    load_balancer: &'a [IpAddr],
}

fn accepted(ips: &[IpAddr], facts: &Facts<'_>, warnings: &mut BTreeSet<Warning>) -> Vec<IpAddr> {
    let is_accepted = |ip: &IpAddr| {
        // The unspecified address stands for NodePorts in SERVICES.
        if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
            warnings.insert(Warning::ForbiddenAddress(*ip));
            return false;
        }
        let ranges = facts.external_ranges;
        let allowed = ranges.is_empty() || ranges.iter().any(|range| range.contains(ip));
        if !allowed {
            warnings.insert(Warning::ExternalNotAllowed(*ip));
        }
        allowed
    };
    ips.iter().copied().filter(is_accepted).collect()
}

fn port_family<'a, F: MapFamily>(
    service: &Service,
    port: &ServicePort,
    addresses: &Addresses<'_>,
    slices: impl Iterator<Item = &'a EndpointSlice>,
    facts: &Facts<'_>,
) -> PortFamily<F> {
    let Some(cluster_ip) = service.cluster_ip(F::FAMILY).and_then(F::from_ip) else {
        return PortFamily::default();
    };
    let endpoints = endpoints_of_port(slices, &port.name, port.protocol, F::FAMILY, facts.node);
    let source_ranges = source_ranges::<F>(service, addresses.load_balancer, facts);
    PortFamily {
        frontends: frontends(service, port, cluster_ip, addresses, !source_ranges.is_empty()),
        backends: backends(&endpoints, facts),
        source_ranges,
    }
}

/// ClusterIP first: the same address in several roles is one frontend. A load balancer VIP comes before an
/// external IP, since it may carry source ranges.
fn frontends<F: MapFamily>(
    service: &Service,
    port: &ServicePort,
    cluster_ip: F::Addr,
    addresses: &Addresses<'_>,
    has_ranges: bool,
) -> Vec<Frontend<F>> {
    let internal_policy = set_of(service.internal_policy);
    let external_policy = set_of(service.external_policy);
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    let mut add = |addr: F::Addr, number: u16, kind: FrontendKind| {
        let (internal, external) = match kind {
            FrontendKind::ClusterIp => (internal_policy, internal_policy),
            // Pods of this node and the node itself may use every endpoint, whatever the policy says.
            _ => (SetKind::Cluster, external_policy),
        };
        let key = ServiceKey { addr, port: number, protocol: port.protocol.number(), zero: 0 };
        if seen.insert(key) {
            let source_ranges = has_ranges && kind == FrontendKind::LoadBalancer;
            found.push(Frontend { key, kind, internal, external, source_ranges });
        }
    };
    add(cluster_ip, port.port, FrontendKind::ClusterIp);
    for addr in addresses.load_balancer.iter().filter_map(|ip| F::from_ip(*ip)) {
        add(addr, port.port, FrontendKind::LoadBalancer);
    }
    for addr in addresses.external.iter().filter_map(|ip| F::from_ip(*ip)) {
        add(addr, port.port, FrontendKind::ExternalIp);
    }
    if let Some(node_port) = port.node_port {
        add(F::Addr::ZERO, node_port, FrontendKind::NodePort);
    }
    found.shrink_to_fit();
    found
}

fn set_of(policy: TrafficPolicy) -> SetKind {
    match policy {
        TrafficPolicy::Cluster => SetKind::Cluster,
        TrafficPolicy::Local => SetKind::Local,
    }
}

fn backends<F: MapFamily>(endpoints: &PortEndpoints, facts: &Facts<'_>) -> Vec<PortBackend<F>> {
    let mut flags = vec![0; endpoints.all.len()];
    for (bit, members) in [(BACKEND_CLUSTER_SET, &endpoints.cluster), (BACKEND_LOCAL_SET, &endpoints.local)] {
        // Without weight: no new flows, while those that are there go on.
        let members = members.iter().filter(|index| endpoints.all[**index].weight > 0);
        members.for_each(|index| flags[*index] |= bit);
    }
    let backend = |(endpoint, mut flags): (&super::endpoints::PortEndpoint, u8)| {
        let addr = F::from_ip(endpoint.address)?;
        if endpoint.local {
            flags |= BACKEND_IS_LOCAL;
            if (facts.is_direct)(endpoint.address) {
                flags |= BACKEND_DIRECT;
            }
        }
        Some(PortBackend { addr, port: endpoint.port, flags, weight: endpoint.weight })
    };
    let mut found: Vec<PortBackend<F>> = endpoints.all.iter().zip(flags).filter_map(backend).collect();
    // It is kept for as long as the Service is.
    found.shrink_to_fit();
    found
}

/// The ranges of one family. One that covers the whole family is as good as no list.
fn source_ranges<F: MapFamily>(service: &Service, vips: &[IpAddr], facts: &Facts<'_>) -> Vec<(F::Addr, u8)> {
    let of_family = || service.source_ranges.iter().filter(|range| Family::of(range.addr()) == F::FAMILY);
    if of_family().any(|range| range.prefix_len() == 0) {
        return Vec::new();
    }
    let mut ranges: BTreeSet<(F::Addr, u8)> =
        of_family().filter_map(|range| Some((F::from_ip(range.network())?, range.prefix_len()))).collect();
    // Where the VIP is bound on the node, the node's own requests to it carry the VIP as their source.
    if of_family().any(|range| facts.node_addresses.iter().any(|ip| range.contains(ip))) {
        ranges.extend(vips.iter().filter_map(|vip| Some((F::from_ip(*vip)?, F::BITS))));
    }
    ranges.into_iter().collect()
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
