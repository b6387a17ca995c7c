//! [`build_host_ports`]: a Pod's host ports -> frontends on the node's own addresses (rule 20). Pure; called by the agent's
//! main loop and by the executors of the scenarios. The Pod is the only backend of each.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use proxy_common::abi::{
    Algorithm, BACKEND_CLUSTER_SET, BACKEND_DIRECT, BACKEND_IS_LOCAL, BACKEND_LOCAL_SET, FrontendKind, ServiceKey,
};
use proxy_common::net::{V4, V6};

use super::{
    build::Facts,
    service::{Frontend, PortBackend, PortDesired, PortFamily, ServiceDesired, SetKind},
};
use crate::{
    dataplane::MapFamily,
    model::{Family, HostPort, Pod, Protocol, ServicePortName},
};

/// Served to the node's own sockets when they connect; packets to these addresses never reach a hook.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Everything that `pod` should have in the maps of its node.
pub fn build_host_ports(pod: &Pod, facts: &Facts<'_>) -> ServiceDesired {
    // All host ports that lead to one port of the Pod are frontends of one service-port.
    let mut by_port: BTreeMap<(u16, Protocol), Vec<&HostPort>> = BTreeMap::new();
    for port in &pod.host_ports {
        by_port.entry((port.port, port.protocol)).or_default().push(port);
    }
    let mut ports = Vec::new();
    for ((number, protocol), host_ports) in by_port {
        let name = ServicePortName::new(pod.name.clone(), number.to_string(), protocol);
        ports.push(PortDesired {
            name,
            affinity_s: 0,
            algorithm: Algorithm::Random,
            v4: port_family::<V4>(pod, number, &host_ports, facts),
            v6: port_family::<V6>(pod, number, &host_ports, facts),
        });
    }
    ServiceDesired {
        name: pod.name.clone(),
        created: pod.created,
        cluster_ips: Vec::new(),
        ports,
        warnings: Vec::new(),
    }
}

fn port_family<F: MapFamily>(pod: &Pod, port: u16, host_ports: &[&HostPort], facts: &Facts<'_>) -> PortFamily<F> {
    let of_family = |ip: &&IpAddr| Family::of(**ip) == F::FAMILY;
    let Some(address) = pod.addresses.iter().find(of_family) else { return PortFamily::default() };
    let mut keys = BTreeSet::new();
    for ip in facts.node_addresses.iter().chain(&LOOPBACK).filter(of_family) {
        let wanted = host_ports.iter().filter(|port| is_served(port, *ip));
        keys.extend(wanted.filter_map(|it| {
            let addr = F::from_ip(*ip)?;
            Some(ServiceKey { addr, port: it.host_port, protocol: it.protocol.number(), zero: 0 })
        }));
    }
    let direct = if (facts.is_direct)(*address) { BACKEND_DIRECT } else { 0 };
    let flags = BACKEND_IS_LOCAL | BACKEND_CLUSTER_SET | BACKEND_LOCAL_SET | direct;
    PortFamily {
        frontends: keys.into_iter().map(frontend).collect(),
        backends: F::from_ip(*address).map(|addr| PortBackend { addr, port, flags, weight: 1 }).into_iter().collect(),
        source_ranges: Vec::new(),
    }
}

fn is_served(port: &HostPort, ip: IpAddr) -> bool {
    let is_family_of = |wanted: IpAddr| Family::of(wanted) == Family::of(ip);
    port.host_ip.is_none_or(|wanted| wanted == ip || wanted.is_unspecified() && is_family_of(wanted))
}

fn frontend<F: MapFamily>(key: ServiceKey<F>) -> Frontend<F> {
    Frontend {
        key,
        kind: FrontendKind::HostPort,
        internal: SetKind::Cluster,
        external: SetKind::Cluster,
        source_ranges: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{NodeFacts, ServiceName};

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn host_port(host_ip: Option<&str>, host_port: u16, port: u16) -> HostPort {
        HostPort { host_ip: host_ip.map(ip), host_port, protocol: Protocol::Tcp, port }
    }

    fn desired(addresses: &[&str], host_ports: Vec<HostPort>) -> ServiceDesired {
        let pod = Pod {
            name: ServiceName::of_pod("default", "web"),
            created: Some(7),
            node: "node-a".into(),
            addresses: addresses.iter().map(|text| ip(text)).collect(),
            host_ports,
        };
        let facts = Facts {
            node: &NodeFacts { name: "node-a".into(), zone: None },
            is_direct: &|_| true,
            node_addresses: &[ip("192.168.1.10"), ip("192.168.2.10"), ip("fd00:1::10")],
            external_ranges: &[],
        };
        build_host_ports(&pod, &facts)
    }

    fn v4(port: &PortDesired) -> Vec<String> {
        port.v4.frontends.iter().map(|it| format!("{}:{}", it.key.addr, it.key.port)).collect()
    }

    #[test]
    fn all_addresses_of_the_node_or_the_one_that_is_named() {
        let found = desired(
            &["10.244.1.10", "fd00:244:1::10"],
            vec![
                host_port(None, 8080, 80),
                host_port(Some("192.168.2.10"), 8081, 80),
                host_port(Some("0.0.0.0"), 9090, 90),
                host_port(Some("192.0.2.1"), 7070, 70),
            ],
        );
        let [missing, web, wild] = &found.ports[..] else { panic!("{found:?}") };
        assert!(missing.v4.frontends.is_empty(), "not an address of this node");
        assert_eq!(v4(web), ["127.0.0.1:8080", "192.168.1.10:8080", "192.168.2.10:8080", "192.168.2.10:8081"]);
        assert_eq!(web.v6.frontends.len(), 2);
        assert_eq!(v4(wild), ["127.0.0.1:9090", "192.168.1.10:9090", "192.168.2.10:9090"]);
        assert!(wild.v6.frontends.is_empty(), "0.0.0.0 is IPv4 only");
        assert_eq!(web.v4.backends.len(), 1);
        assert_eq!(web.name.to_string(), "default/pod/web:80/TCP");
    }

    #[test]
    fn a_family_without_an_address_has_nothing() {
        let found = desired(&["10.244.1.10"], vec![host_port(None, 8080, 80)]);
        assert!(found.ports[0].v6.frontends.is_empty() && found.ports[0].v6.backends.is_empty());
    }
}
