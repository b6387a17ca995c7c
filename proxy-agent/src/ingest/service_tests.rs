//! What a Service object amounts to, and what of it is skipped and why.

use serde_json::{Value, json};

use super::*;
use crate::model::Family;
use proxy_common::abi::Algorithm;

fn service(metadata: Value, spec: Value, status: Value) -> core::Service {
    let mut object = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec, "status": status});
    for (key, value) in metadata.as_object().expect("a mapping") {
        object["metadata"][key] = value.clone();
    }
    serde_json::from_value(object).expect("a Service")
}

fn reduce(spec: Value) -> Reduced<Service> {
    reduce_service(&service(json!({}), spec, json!({})))
}

fn used(spec: Value) -> Service {
    reduce(spec).value.expect("a Service to program")
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}

fn reasons(skips: &[crate::model::Skip]) -> Vec<(&str, &'static str)> {
    skips.iter().map(|skip| (skip.field.as_str(), skip.reason.as_str())).collect()
}

#[test]
fn every_field_arrives() {
    let object = service(
        json!({"creationTimestamp": "1970-01-01T00:01:00Z", "annotations": {"weir.dev/algorithm": "maglev"}}),
        json!({
            "type": "LoadBalancer", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00:96::10"],
            "externalIPs": ["80.11.12.10", "080.11.12.010"],
            "loadBalancerSourceRanges": [" 10.0.0.0/8 ", "", "fd00::/16"],
            "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "trafficDistribution": "PreferClose",
            "ports": [
                {"name": "http", "port": 80, "nodePort": 30080},
                {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 0},
            ],
        }),
        json!({"loadBalancer": {"ingress": [
            {"ip": "192.0.2.127"}, {"ip": "192.0.2.128", "ipMode": "VIP"}, {"ip": "192.0.2.129", "ipMode": "Proxy"},
            {"hostname": "lb.example.org"},
        ]}}),
    );
    let Reduced { value, skips } = reduce_service(&object);
    assert_eq!(skips, []);
    let found = value.expect("a Service to program");
    assert_eq!(found.name.to_string(), "default/web");
    assert_eq!(found.created, Some(60));
    assert_eq!(found.algorithm, Algorithm::Maglev);
    assert_eq!(found.cluster_ips, ips(&["10.96.0.10", "fd00:96::10"]));
    assert_eq!(found.cluster_ip(Family::V6), Some("fd00:96::10".parse().expect("an address")));
    assert_eq!(found.external_ips, ips(&["80.11.12.10"]));
    assert_eq!(found.load_balancer_ips, ips(&["192.0.2.127", "192.0.2.128"]));
    assert_eq!(found.source_ranges.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.0/8", "fd00::/16"]);
    assert_eq!((found.internal_policy, found.external_policy), (TrafficPolicy::Local, TrafficPolicy::Local));
    assert_eq!(found.health_check_node_port, Some(31000));
    assert_eq!(found.affinity_timeout_s, Some(60));
    assert_eq!(found.traffic_distribution.as_deref(), Some("PreferClose"));
    let ports: Vec<_> = found.ports.iter().map(|it| (&*it.name, it.protocol, it.port, it.node_port)).collect();
    assert_eq!(ports, [("http", Protocol::Tcp, 80, Some(30080)), ("dns", Protocol::Udp, 53, None)]);
}

#[test]
fn services_that_are_not_programmed() {
    let labelled = json!({"labels": {"service.kubernetes.io/service-proxy-name": ""}});
    let cluster_ip = json!({"clusterIP": "10.96.0.10"});
    for (name, object) in [
        ("headless", service(json!({}), json!({"clusterIP": "None", "clusterIPs": ["None"]}), json!({}))),
        ("not allocated yet", service(json!({}), json!({"clusterIP": ""}), json!({}))),
        ("no address", service(json!({}), json!({"ports": [{"port": 80}]}), json!({}))),
        ("name only", service(json!({}), json!({"type": "ExternalName", "externalName": "example.org"}), json!({}))),
        ("another proxy's", service(labelled, cluster_ip, json!({}))),
    ] {
        let Reduced { value, skips } = reduce_service(&object);
        assert!(value.is_none() && skips.is_empty(), "{name}");
    }
}

#[test]
fn cluster_ips_alone_are_enough() {
    assert_eq!(used(json!({"clusterIPs": ["10.96.0.10"]})).cluster_ips, ips(&["10.96.0.10"]));
}

#[test]
fn malformed_parts_are_skipped_and_the_rest_is_used() {
    let Reduced { value, skips } = reduce(json!({
        "clusterIP": "10.96.0.10", "externalIPs": ["192.0.2.1", "nonsense", "127.0.0.1"],
        "externalTrafficPolicy": "Nearby", "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": -1}},
        "loadBalancerSourceRanges": ["10.0.0.0/8", "10.0.0.0/99"],
        "ports": [
            {"name": "a", "port": 0}, {"name": "b", "port": 80, "protocol": "ICMP"}, {"name": "c", "port": 70000},
            {"name": "d", "port": 443, "nodePort": 99999}, {"name": "d", "port": 444},
        ],
    }));
    let found = value.expect("a Service to program");
    assert_eq!(found.external_ips, ips(&["192.0.2.1"]));
    assert_eq!(found.external_policy, TrafficPolicy::Cluster);
    assert_eq!(found.affinity_timeout_s, Some(10_800));
    assert_eq!(found.source_ranges.len(), 1);
    assert_eq!(found.ports.iter().map(|it| (it.port, it.node_port)).collect::<Vec<_>>(), [(443, None)]);
    assert_eq!(
        reasons(&skips),
        [
            ("spec.externalTrafficPolicy", "invalid-policy"),
            ("spec.externalIPs[1]", "invalid-ip"),
            ("spec.externalIPs[2]", "forbidden-address"),
            ("spec.loadBalancerSourceRanges[1]", "invalid-range"),
            ("spec.ports[0].port", "invalid-port"),
            ("spec.ports[1].protocol", "invalid-protocol"),
            ("spec.ports[2].port", "invalid-port"),
            ("spec.ports[3].nodePort", "invalid-port"),
            ("spec.ports[4].name", "duplicate-port"),
            ("spec.sessionAffinityConfig.clientIP.timeoutSeconds", "invalid-affinity"),
        ]
    );
}

#[test]
fn unreadable_source_ranges_do_not_open_what_was_closed() {
    let found = used(json!({"clusterIP": "10.96.0.10", "loadBalancerSourceRanges": ["10.0.0/8"]}));
    assert_eq!(found.source_ranges, Service::admit_nobody());
    let blank = used(json!({"clusterIP": "10.96.0.10", "loadBalancerSourceRanges": [" "]}));
    assert!(blank.source_ranges.is_empty());
}

#[test]
fn affinity_defaults_to_three_hours() {
    let found = used(json!({"clusterIP": "10.96.0.10", "sessionAffinity": "ClientIP"}));
    assert_eq!(found.affinity_timeout_s, Some(10_800));
    assert_eq!(used(json!({"clusterIP": "10.96.0.10", "sessionAffinity": "None"})).affinity_timeout_s, None);
}

#[test]
fn only_a_local_load_balancer_has_a_health_check() {
    let spec = |kind: &str, policy: &str| json!({"clusterIP": "10.96.0.10", "type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": 31000});
    assert_eq!(used(spec("LoadBalancer", "Local")).health_check_node_port, Some(31000));
    assert_eq!(used(spec("LoadBalancer", "Cluster")).health_check_node_port, None);
    assert_eq!(used(spec("NodePort", "Local")).health_check_node_port, None);
}

#[test]
fn a_service_without_a_name_is_skipped() {
    let Reduced { value, skips } = reduce_service(&core::Service::default());
    assert!(value.is_none());
    assert_eq!(reasons(&skips), [("metadata", "missing-name")]);
}

#[test]
fn names_that_no_api_server_admits_are_refused() {
    let long = "x".repeat(64);
    for name in ["a/b", "a:b", "a b", "a\n", long.as_str()] {
        let object = json!({"metadata": {"name": name, "namespace": "default"}, "spec": {"clusterIP": "10.96.0.10"}});
        let Reduced { value, skips } = reduce_service(&serde_json::from_value(object).unwrap());
        assert!(value.is_none());
        assert_eq!(reasons(&skips), [("metadata.name", "invalid-name")]);
    }
    let Reduced { value, skips } = reduce(json!({"clusterIP": "10.96.0.10", "ports": [{"name": "a/b", "port": 80}]}));
    assert!(value.is_some_and(|service| service.ports.is_empty()));
    assert_eq!(reasons(&skips), [("spec.ports[0].name", "invalid-name")]);
}

#[test]
fn an_unknown_ip_mode_is_named_and_not_programmed() {
    let status = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "Vip"}]}});
    let object = service(json!({}), json!({"clusterIP": "10.96.0.10"}), status);
    let Reduced { value, skips } = reduce_service(&object);
    assert!(value.is_some_and(|service| service.load_balancer_ips.is_empty()));
    assert_eq!(reasons(&skips), [("status.loadBalancer.ingress[0].ipMode", "invalid-ip-mode")]);
}
