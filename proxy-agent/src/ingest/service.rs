//! core/v1 Service to the model.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;

use super::{
    PROXY_NAME_LABEL, Reduced, Skips,
    address::{may_be_vip, parse_ip, parse_range},
    has_label, is_usable_name, namespaced, port_number,
    schedule::algorithm,
};
use crate::model::{Protocol, Service, ServiceName, ServicePort, SkipReason, TrafficPolicy};

/// The API server's default for sessionAffinityConfig.clientIP.timeoutSeconds, in seconds.
const DEFAULT_AFFINITY_TIMEOUT_S: u32 = 10_800;
/// The greatest timeout that the API server admits: one day, in seconds.
const MAX_AFFINITY_TIMEOUT_S: i32 = 86_400;

/// What there is to program of a Service; nothing if it is headless, an ExternalName or another proxy's.
pub fn reduce_service(object: &core::Service) -> Reduced<Service> {
    let metadata = &object.metadata;
    let mut skips = Skips::of("Service", metadata);
    let Some((namespace, name)) = namespaced(metadata) else {
        skips.add("metadata", "", SkipReason::MissingName);
        return skips.nothing();
    };
    let Some(spec) = object.spec.as_ref().filter(|_| !has_label(metadata, PROXY_NAME_LABEL)) else {
        return Reduced::nothing();
    };
    if spec.type_.as_deref() == Some("ExternalName") || !has_cluster_ip(spec) {
        return Reduced::nothing();
    }
    for (field, text) in [("metadata.namespace", namespace), ("metadata.name", name)] {
        if !is_usable_name(text) {
            skips.add(field, text, SkipReason::InvalidName);
            return skips.nothing();
        }
    }
    let external_policy = policy(spec.external_traffic_policy.as_deref(), "spec.externalTrafficPolicy", &mut skips);
    let service = Service {
        name: ServiceName::new(namespace, name),
        created: metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
        cluster_ips: cluster_ips(spec, &mut skips),
        external_ips: vips(listed(spec.external_ips.as_deref(), "spec.externalIPs"), &mut skips),
        load_balancer_ips: load_balancer_ips(object.status.as_ref(), &mut skips),
        source_ranges: source_ranges(spec, &mut skips),
        ports: ports(spec, &mut skips),
        internal_policy: policy(spec.internal_traffic_policy.as_deref(), "spec.internalTrafficPolicy", &mut skips),
        external_policy,
        affinity_timeout_s: affinity_timeout(spec, &mut skips),
        health_check_node_port: health_check_node_port(spec, external_policy, &mut skips),
        traffic_distribution: spec.traffic_distribution.as_deref().map(Into::into),
        algorithm: algorithm(metadata, &mut skips),
    };
    skips.with(service)
}

fn has_cluster_ip(spec: &core::ServiceSpec) -> bool {
    let first = spec.cluster_ip.as_deref().or_else(|| spec.cluster_ips.as_ref()?.first().map(String::as_str));
    !matches!(first, None | Some("" | "None"))
}

fn cluster_ips(spec: &core::ServiceSpec, skips: &mut Skips) -> Vec<IpAddr> {
    match spec.cluster_ips.as_deref().filter(|list| !list.is_empty()) {
        Some(list) => vips(listed(Some(list), "spec.clusterIPs"), skips),
        None => vips(spec.cluster_ip.iter().map(|ip| ("spec.clusterIP".to_owned(), ip.as_str())), skips),
    }
}

/// Names each element of a list of texts by its path.
fn listed<'a>(list: Option<&'a [String]>, path: &str) -> impl Iterator<Item = (String, &'a str)> {
    list.unwrap_or_default().iter().enumerate().map(move |(index, text)| (format!("{path}[{index}]"), text.as_str()))
}

/// The addresses that a frontend may have, each once, in the order given.
fn vips<'a>(texts: impl Iterator<Item = (String, &'a str)>, skips: &mut Skips) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for (field, text) in texts {
        match parse_ip(text) {
            None => skips.add(field, text, SkipReason::InvalidIp),
            Some(address) if !may_be_vip(address) => skips.add(field, text, SkipReason::ForbiddenAddress),
            Some(address) if found.contains(&address) => {}
            Some(address) => found.push(address),
        }
    }
    found
}

/// Ingress addresses that are to be served here: ipMode Proxy means that the load balancer itself
/// sends to the node, and an ingress with a hostname only has no address.
fn load_balancer_ips(status: Option<&core::ServiceStatus>, skips: &mut Skips) -> Vec<IpAddr> {
    let ingress = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_deref()).unwrap_or_default();
    for (index, point) in ingress.iter().enumerate() {
        if let Some(mode) = point.ip_mode.as_deref().filter(|mode| !["VIP", "Proxy"].contains(mode)) {
            skips.add(format!("status.loadBalancer.ingress[{index}].ipMode"), mode, SkipReason::InvalidIpMode);
        }
    }
    let texts = ingress
        .iter()
        .enumerate()
        .filter(|(_, point)| matches!(point.ip_mode.as_deref(), None | Some("VIP")))
        .filter_map(|(index, point)| {
            let ip = point.ip.as_deref().filter(|ip| !ip.is_empty())?;
            Some((format!("status.loadBalancer.ingress[{index}].ip"), ip))
        });
    vips(texts, skips)
}

fn source_ranges(spec: &core::ServiceSpec, skips: &mut Skips) -> Vec<IpNet> {
    let given = spec.load_balancer_source_ranges.as_deref();
    let mut ranges = Vec::new();
    for (field, text) in listed(given, "spec.loadBalancerSourceRanges") {
        if text.trim().is_empty() {
            continue;
        }
        match parse_range(text) {
            Some(range) => ranges.push(range),
            None => skips.add(field, text, SkipReason::InvalidRange),
        }
    }
    let none_readable = ranges.is_empty() && given.unwrap_or_default().iter().any(|text| !text.trim().is_empty());
    if none_readable { Service::admit_nobody() } else { ranges }
}

fn ports(spec: &core::ServiceSpec, skips: &mut Skips) -> Vec<ServicePort> {
    let mut found: Vec<ServicePort> = Vec::new();
    for (index, port) in spec.ports.as_deref().unwrap_or_default().iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        let Some(number) = port_number(port.port) else {
            skips.add(field("port"), port.port.to_string(), SkipReason::InvalidPort);
            continue;
        };
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let Ok(protocol) = protocol.parse::<Protocol>() else {
            skips.add(field("protocol"), protocol, SkipReason::InvalidProtocol);
            continue;
        };
        let name: Arc<str> = port.name.as_deref().unwrap_or_default().into();
        if !is_usable_name(&name) {
            skips.add(field("name"), &*name, SkipReason::InvalidName);
            continue;
        }
        if found.iter().any(|known| known.name == name && known.protocol == protocol) {
            skips.add(field("name"), &*name, SkipReason::DuplicatePort);
            continue;
        }
        let wanted = port.node_port.filter(|port| *port != 0);
        let node_port = wanted.and_then(port_number);
        if let (Some(wanted), None) = (wanted, node_port) {
            skips.add(field("nodePort"), wanted.to_string(), SkipReason::InvalidPort);
        }
        found.push(ServicePort { name, protocol, port: number, node_port });
    }
    found
}

fn policy(text: Option<&str>, field: &str, skips: &mut Skips) -> TrafficPolicy {
    match text {
        Some("Local") => TrafficPolicy::Local,
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some(other) => {
            skips.add(field, other, SkipReason::InvalidPolicy);
            TrafficPolicy::Cluster
        }
    }
}

fn affinity_timeout(spec: &core::ServiceSpec, skips: &mut Skips) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        Some("ClientIP") => {}
        None | Some("" | "None") => return None,
        Some(other) => {
            skips.add("spec.sessionAffinity", other, SkipReason::InvalidAffinity);
            return None;
        }
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    let Some(seconds) = config else { return Some(DEFAULT_AFFINITY_TIMEOUT_S) };
    match u32::try_from(seconds) {
        Ok(usable) if (1..=MAX_AFFINITY_TIMEOUT_S).contains(&seconds) => Some(usable),
        _ => {
            let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
            skips.add(field, seconds.to_string(), SkipReason::InvalidAffinity);
            Some(DEFAULT_AFFINITY_TIMEOUT_S)
        }
    }
}

/// Only a load balancer that must know which nodes have an endpoint asks for the health check.
fn health_check_node_port(spec: &core::ServiceSpec, external: TrafficPolicy, skips: &mut Skips) -> Option<u16> {
    let asked = spec.type_.as_deref() == Some("LoadBalancer") && external == TrafficPolicy::Local;
    let number = spec.health_check_node_port.filter(|port| asked && *port != 0)?;
    let port = port_number(number);
    if port.is_none() {
        skips.add("spec.healthCheckNodePort", number.to_string(), SkipReason::InvalidPort);
    }
    port
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
