//! EndpointSlices from Pods, as the EndpointSlice controller of a cluster writes them.
//!
//! Called by `build` for Services with a selector when the manifests hold the Pods but neither
//! EndpointSlices nor Endpoints.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use crate::{
    ingest::{SERVICE_NAME_LABEL, parse_ip},
    model::Family,
};

/// Name, protocol and number of each port of a slice.
type Ports = Vec<(String, String, i32)>;

/// The slices of one Service: one for each family of its addresses and each set of port numbers, since a
/// named target port may differ from pod to pod.
pub(super) fn slices_of_pods(
    service: &core::Service,
    pods: &[&core::Pod],
    zones: &BTreeMap<&str, &str>,
) -> Vec<discovery::EndpointSlice> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let Some(selector) = spec.selector.as_ref().filter(|selector| !selector.is_empty()) else { return Vec::new() };
    let namespace = service.metadata.namespace.as_deref();
    let chosen = || pods.iter().filter(|pod| pod.metadata.namespace.as_deref() == namespace && selects(selector, pod));
    let mut slices = Vec::new();
    for family in families(spec) {
        let mut groups: BTreeMap<Ports, Vec<discovery::Endpoint>> = BTreeMap::new();
        for pod in chosen() {
            if let Some(endpoint) = endpoint(spec, pod, family, zones) {
                groups.entry(ports(spec, pod)).or_default().push(endpoint);
            }
        }
        for (index, (ports, endpoints)) in groups.into_iter().enumerate() {
            slices.push(slice(service, family, index, ports, endpoints));
        }
    }
    slices
}

fn families(spec: &core::ServiceSpec) -> Vec<Family> {
    let mut found = Vec::new();
    for text in spec.cluster_ips.iter().flatten() {
        if let Some(family) = parse_ip(text).map(Family::of)
            && !found.contains(&family)
        {
            found.push(family);
        }
    }
    found
}

fn selects(selector: &BTreeMap<String, String>, pod: &core::Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// None for a pod that has ended or has no address of the family (yet).
fn endpoint(
    spec: &core::ServiceSpec,
    pod: &core::Pod,
    family: Family,
    zones: &BTreeMap<&str, &str>,
) -> Option<discovery::Endpoint> {
    let status = pod.status.as_ref()?;
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let listed = status.pod_ips.iter().flatten().map(|ip| &ip.ip).chain(&status.pod_ip);
    let address = listed.into_iter().find(|text| parse_ip(text).map(Family::of) == Some(family))?;
    let conditions = status.conditions.iter().flatten();
    let serving = conditions.into_iter().any(|it| it.type_ == "Ready" && it.status == "True");
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let ready = spec.publish_not_ready_addresses == Some(true) || (serving && !terminating);
    let node_name = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let zone = node_name.as_deref().and_then(|node| zones.get(node)).map(|zone| (*zone).to_owned());
    Some(discovery::Endpoint {
        addresses: vec![address.clone()],
        conditions: Some(discovery::EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hints: hints(spec, node_name.as_deref(), zone.as_deref()).filter(|_| ready),
        node_name,
        zone,
        ..discovery::Endpoint::default()
    })
}

/// A traffic distribution is hints that name the endpoint's own place.
fn hints(spec: &core::ServiceSpec, node: Option<&str>, zone: Option<&str>) -> Option<discovery::EndpointHints> {
    let same_node = match spec.traffic_distribution.as_deref()? {
        "PreferSameNode" => true,
        "PreferClose" | "PreferSameZone" => false,
        _ => return None,
    };
    Some(discovery::EndpointHints {
        for_zones: zone.map(|name| vec![discovery::ForZone { name: name.to_owned() }]),
        for_nodes: node.filter(|_| same_node).map(|name| vec![discovery::ForNode { name: name.to_owned() }]),
    })
}

/// The Service's ports with the numbers they have in this pod; a named one that the pod lacks is left out.
fn ports(spec: &core::ServiceSpec, pod: &core::Pod) -> Ports {
    let mut found = Vec::new();
    for port in spec.ports.iter().flatten() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let number = match &port.target_port {
            None => Some(port.port),
            Some(IntOrString::Int(0)) => Some(port.port),
            Some(IntOrString::Int(number)) => Some(*number),
            Some(IntOrString::String(name)) => container_port(pod, name, protocol),
        };
        if let Some(number) = number {
            found.push((port.name.clone().unwrap_or_default(), protocol.to_owned(), number));
        }
    }
    found
}

fn container_port(pod: &core::Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    // An init container with restartPolicy Always is a sidecar: it runs, and serves, beside the others.
    let sidecars = spec.init_containers.iter().flatten().filter(|it| it.restart_policy.as_deref() == Some("Always"));
    let mut ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports
        .find(|port| port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol)
        .map(|port| port.container_port)
}

fn slice(
    service: &core::Service,
    family: Family,
    index: usize,
    ports: Ports,
    endpoints: Vec<discovery::Endpoint>,
) -> discovery::EndpointSlice {
    let name = service.metadata.name.clone().unwrap_or_default();
    let family = family.to_string();
    discovery::EndpointSlice {
        metadata: ObjectMeta {
            // The colon keeps clear of every name that an API server would admit.
            name: Some(format!("{name}:pods:{index}:{}", family.to_lowercase())),
            namespace: service.metadata.namespace.clone(),
            labels: Some(BTreeMap::from([(SERVICE_NAME_LABEL.to_owned(), name)])),
            ..ObjectMeta::default()
        },
        address_type: family,
        endpoints,
        ports: Some(
            ports
                .into_iter()
                .map(|(name, protocol, port)| discovery::EndpointPort {
                    app_protocol: None,
                    name: Some(name),
                    port: Some(port),
                    protocol: Some(protocol),
                })
                .collect(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(extra: Value) -> core::Service {
        let mut spec = json!({
            "clusterIPs": ["10.96.0.1"], "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "targetPort": "web"}, {"name": "admin", "port": 9000}],
        });
        for (key, value) in extra.as_object().expect("a mapping") {
            spec[key] = value.clone();
        }
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec}))
            .expect("a Service")
    }

    fn pod(number: u8, port: u16, ready: &str, extra: Value) -> core::Pod {
        let mut pod = json!({
            "metadata": {"name": format!("web-{number}"), "namespace": "default", "labels": {"app": "web", "x": "y"}},
            "spec": {"nodeName": "node-a", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": port}]}]},
            "status": {
                "podIPs": [{"ip": format!("10.1.0.{number}")}, {"ip": format!("fd00::{number}")}],
                "conditions": [{"type": "Ready", "status": ready}],
            },
        });
        for (path, value) in extra.as_object().expect("a mapping") {
            *pod.pointer_mut(path).expect("a known place") = value.clone();
        }
        serde_json::from_value(pod).expect("a Pod")
    }

    fn slices(service: &core::Service, pods: &[core::Pod]) -> Vec<discovery::EndpointSlice> {
        slices_of_pods(service, &pods.iter().collect::<Vec<_>>(), &BTreeMap::from([("node-a", "z1")]))
    }

    #[test]
    fn named_target_ports_are_looked_up_in_each_pod() {
        let found = slices(
            &service(json!({})),
            &[
                pod(1, 8080, "True", json!({})),
                pod(2, 8081, "True", json!({})),
                pod(3, 8080, "True", json!({"/metadata/labels": {"app": "other"}})),
                pod(4, 8080, "True", json!({"/metadata/namespace": "elsewhere"})),
            ],
        );
        let ports: Vec<Vec<_>> =
            found.iter().map(|it| it.ports.iter().flatten().filter_map(|port| port.port).collect()).collect();
        assert_eq!(ports, [[8080, 9000], [8081, 9000]]);
        assert_eq!(found[0].endpoints[0].addresses, ["10.1.0.1"]);
        assert_eq!(found[0].endpoints[0].zone.as_deref(), Some("z1"));
        assert_eq!(found[1].metadata.name.as_deref(), Some("web:pods:1:ipv4"));
    }

    #[test]
    fn conditions_follow_the_pod() {
        let gone = json!({"/metadata": {
            "name": "gone", "namespace": "default", "labels": {"app": "web"}, "deletionTimestamp": "2026-01-01T00:00:00Z",
        }});
        let ended = json!({"/status": {"podIP": "10.1.0.9", "phase": "Succeeded"}});
        let pods = [
            pod(1, 80, "True", json!({})),
            pod(2, 80, "False", json!({})),
            pod(3, 80, "True", gone),
            pod(4, 80, "True", ended),
            pod(5, 80, "True", json!({"/status": {"phase": "Pending"}})),
        ];
        let conditions = |service: &core::Service| -> Vec<_> {
            let slices = slices(service, &pods);
            let of = slices.iter().flat_map(|slice| &slice.endpoints).filter_map(|it| it.conditions.clone());
            of.map(|it| [it.ready, it.serving, it.terminating].map(|it| it.unwrap_or_default())).collect()
        };
        let expected = [[true, true, false], [false, false, false], [false, true, true]];
        assert_eq!(conditions(&service(json!({}))), expected);
        let published = [[true, true, false], [true, false, false], [true, true, true]];
        assert_eq!(conditions(&service(json!({"publishNotReadyAddresses": true}))), published);
    }

    #[test]
    fn both_families_and_hints() {
        let dual = json!({"clusterIPs": ["10.96.0.1", "fd00:96::1"], "trafficDistribution": "PreferSameNode"});
        let found = slices(&service(dual), &[pod(1, 80, "True", json!({}))]);
        let kinds: Vec<_> =
            found.iter().map(|it| (it.address_type.as_str(), it.endpoints[0].addresses[0].as_str())).collect();
        assert_eq!(kinds, [("IPv4", "10.1.0.1"), ("IPv6", "fd00::1")]);
        let hints = found[0].endpoints[0].hints.clone().expect("hints");
        assert_eq!(hints.for_nodes.expect("nodes")[0].name, "node-a");
        assert_eq!(hints.for_zones.expect("zones")[0].name, "z1");
    }

    #[test]
    fn no_selector_no_slices() {
        assert!(slices(&service(json!({"selector": {}})), &[pod(1, 80, "True", json!({}))]).is_empty());
        assert!(slices(&service(json!({"selector": null})), &[pod(1, 80, "True", json!({}))]).is_empty());
    }
}
