//! Which frontends and backends a Service gets: one test per rule.

use std::sync::Arc;

use super::*;
use crate::{
    desired::{ServiceDesired, SetKind},
    model::{Endpoint, Protocol, ServiceName, SlicePort},
};
use proxy_common::abi::{Algorithm, EmptySet};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a range")
}

fn service() -> Service {
    Service {
        name: ServiceName::new("default", "web"),
        created: Some(1),
        cluster_ips: vec![ip("10.96.0.10")],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity_timeout_s: None,
        health_check_node_port: None,
        traffic_distribution: None,
        algorithm: Algorithm::Random,
    }
}

fn slice(endpoints: &[(&str, &str)]) -> EndpointSlice {
    let endpoint = |(address, node): &(&str, &str)| Endpoint {
        address: ip(address),
        node: Some(Arc::from(*node)),
        zone: None,
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
        ready: true,
        serving: true,
        terminating: false,
        weight: 1,
    };
    EndpointSlice {
        name: "web-1".into(),
        service: ServiceName::new("default", "web"),
        family: Family::of(ip(endpoints[0].0)),
        ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: endpoints.iter().map(endpoint).collect(),
        last_change: Default::default(),
    }
}

fn build(service: &Service, slices: &[EndpointSlice]) -> ServiceDesired {
    build_with(service, slices, &[], &[])
}

fn build_with(
    service: &Service,
    slices: &[EndpointSlice],
    node_addresses: &[IpAddr],
    external_ranges: &[IpNet],
) -> ServiceDesired {
    let node = NodeFacts { name: "here".into(), zone: None };
    let is_direct = |address: IpAddr| address == ip("10.244.1.2");
    let facts = Facts { node: &node, is_direct: &is_direct, node_addresses, external_ranges };
    build_desired(service, slices.iter(), &facts)
}

fn frontend_texts(desired: &ServiceDesired) -> Vec<String> {
    fn texts<F: MapFamily>(family: &PortFamily<F>) -> Vec<String> {
        let text = |it: &Frontend<F>| {
            let ranges = if it.source_ranges { " ranges" } else { "" };
            format!("{} {} {:?} {:?}/{:?}{ranges}", it.key.addr, it.key.port, it.kind, it.internal, it.external)
        };
        family.frontends.iter().map(text).collect()
    }
    desired.ports.iter().flat_map(|port| [texts(&port.v4), texts(&port.v6)].concat()).collect()
}

#[test]
fn policies_choose_the_sets() {
    let mut service = service();
    service.ports[0].node_port = Some(30080);
    service.external_ips = vec![ip("80.11.12.10"), ip("2001:db8::1")];
    service.load_balancer_ips = vec![ip("192.0.2.127")];
    service.external_policy = TrafficPolicy::Local;
    assert_eq!(
        frontend_texts(&build(&service, &[])),
        [
            "10.96.0.10 80 ClusterIp Cluster/Cluster",
            "192.0.2.127 80 LoadBalancer Cluster/Local",
            "80.11.12.10 80 ExternalIp Cluster/Local",
            "0.0.0.0 30080 NodePort Cluster/Local",
        ]
    );
    service.internal_policy = TrafficPolicy::Local;
    service.external_policy = TrafficPolicy::Cluster;
    let texts = frontend_texts(&build(&service, &[]));
    assert_eq!(texts[0], "10.96.0.10 80 ClusterIp Local/Local");
    assert_eq!(texts[3], "0.0.0.0 30080 NodePort Cluster/Cluster");
}

#[test]
fn a_family_without_cluster_ip_has_no_frontends() {
    let mut service = service();
    service.ports[0].node_port = Some(30080);
    service.external_ips = vec![ip("2001:db8::1")];
    assert!(build(&service, &[]).ports[0].v6.frontends.is_empty());
    service.cluster_ips.push(ip("fd00::10"));
    let texts = frontend_texts(&build(&service, &[slice(&[("fd01::2", "here")])]));
    assert_eq!(
        texts[2..],
        [
            "fd00::10 80 ClusterIp Cluster/Cluster",
            "2001:db8::1 80 ExternalIp Cluster/Cluster",
            ":: 30080 NodePort Cluster/Cluster"
        ]
    );
}

#[test]
fn backends_carry_place_and_membership() {
    let desired =
        build(&service(), &[slice(&[("10.244.2.3", "there"), ("10.244.1.3", "here"), ("10.244.1.2", "here")])]);
    let flags: Vec<_> = desired.ports[0].v4.backends.iter().map(|it| (it.addr.to_string(), it.flags)).collect();
    let local = BACKEND_IS_LOCAL | BACKEND_CLUSTER_SET | BACKEND_LOCAL_SET;
    assert_eq!(
        flags,
        [
            ("10.244.1.2".into(), local | BACKEND_DIRECT),
            ("10.244.1.3".into(), local),
            ("10.244.2.3".into(), BACKEND_CLUSTER_SET),
        ]
    );
}

#[test]
fn the_empty_local_set_drops_only_if_others_have_endpoints() {
    let none = build(&service(), &[]);
    assert_eq!(none.ports[0].v4.when_empty(SetKind::Local), EmptySet::Refuse);
    let elsewhere = build(&service(), &[slice(&[("10.244.2.3", "there")])]);
    assert_eq!(elsewhere.ports[0].v4.when_empty(SetKind::Local), EmptySet::Drop);
    assert_eq!(elsewhere.ports[0].v4.when_empty(SetKind::Cluster), EmptySet::Refuse);
}

#[test]
fn source_ranges_bind_load_balancers_only() {
    let mut service = service();
    service.load_balancer_ips = vec![ip("192.0.2.127")];
    service.external_ips = vec![ip("192.0.2.127"), ip("80.11.12.10")];
    service.source_ranges = vec![net("10.1.2.3/8"), net("2001:db8::/32")];
    let desired = build_with(&service, &[], &[ip("172.16.0.1")], &[]);
    assert_eq!(
        frontend_texts(&desired),
        [
            "10.96.0.10 80 ClusterIp Cluster/Cluster",
            "192.0.2.127 80 LoadBalancer Cluster/Cluster ranges",
            "80.11.12.10 80 ExternalIp Cluster/Cluster",
        ]
    );
    let ranges = |desired: &ServiceDesired| -> Vec<String> {
        desired.ports[0].v4.source_ranges.iter().map(|(net, len)| format!("{net}/{len}")).collect()
    };
    assert_eq!(ranges(&desired), ["10.0.0.0/8"]);
    assert_eq!(ranges(&build_with(&service, &[], &[ip("10.9.9.9")], &[])), ["10.0.0.0/8", "192.0.2.127/32"]);
    service.source_ranges.push(net("0.0.0.0/0"));
    assert!(ranges(&build(&service, &[])).is_empty());
}

#[test]
fn what_cannot_be_programmed_is_named() {
    let mut service = service();
    service.external_ips = vec![ip("0.0.0.0"), ip("80.11.12.10"), ip("192.0.2.1")];
    let desired = build_with(&service, &[], &[], &[net("192.0.2.0/24")]);
    assert_eq!(desired.warnings.len(), 2);
    assert_eq!(frontend_texts(&desired).len(), 2);
}
