//! core/v1 Pod to the model: its host ports (rule 20), and nothing else of it.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use super::{
    Reduced, Skips,
    address::{may_be_endpoint, parse_ip},
    is_usable_name, namespaced, port_number,
};
use crate::model::{Family, HostPort, Pod, Protocol, ServiceName, SkipReason};

/// What there is to program of a Pod; nothing without host ports, with the node's own network, or if it does not run.
pub fn reduce_pod(object: &core::Pod) -> Reduced<Pod> {
    let metadata = &object.metadata;
    let mut skips = Skips::of("Pod", metadata);
    let Some(spec) = object.spec.as_ref().filter(|spec| spec.host_network != Some(true) && asks_for_ports(spec)) else {
        return Reduced::nothing();
    };
    let Some((namespace, name)) = namespaced(metadata) else {
        skips.add("metadata", "", SkipReason::MissingName);
        return skips.nothing();
    };
    for (field, text) in [("metadata.namespace", namespace), ("metadata.name", name)] {
        // A Pod's name may be longer than a Service's; it is shortened where it does not fit.
        if !is_usable_name(text.get(..63).unwrap_or(text)) {
            skips.add(field, text, SkipReason::InvalidName);
            return skips.nothing();
        }
    }
    let status = object.status.as_ref();
    // Nothing else runs there, or ever will again. An absent phase is a manifest's.
    if !matches!(status.and_then(|status| status.phase.as_deref()), None | Some("Running")) {
        return skips.nothing();
    }
    let pod = Pod {
        name: ServiceName::of_pod(namespace, name),
        created: metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
        node: spec.node_name.as_deref().unwrap_or_default().into(),
        addresses: addresses(status, &mut skips),
        host_ports: host_ports(spec, &mut skips),
    };
    skips.with(pod)
}

/// Containers that run beside each other: an init container with restartPolicy Always is one of them.
fn containers(spec: &core::PodSpec) -> impl Iterator<Item = (String, &core::Container)> {
    let named = |list: &'static str, containers| {
        let containers: &[core::Container] = containers;
        containers.iter().enumerate().map(move |(index, it)| (format!("spec.{list}[{index}]"), it))
    };
    let sidecars = named("initContainers", spec.init_containers.as_deref().unwrap_or_default());
    named("containers", &spec.containers)
        .chain(sidecars.filter(|(_, it)| it.restart_policy.as_deref() == Some("Always")))
}

fn asks_for_ports(spec: &core::PodSpec) -> bool {
    let ports = containers(spec).flat_map(|(_, container)| container.ports.as_deref().unwrap_or_default());
    ports.into_iter().any(|port| port.host_port.is_some_and(|port| port != 0))
}

/// The first address of each family.
fn addresses(status: Option<&core::PodStatus>, skips: &mut Skips) -> Vec<IpAddr> {
    let Some(status) = status else { return Vec::new() };
    let listed = status.pod_ips.iter().flatten().enumerate();
    let mut texts: Vec<_> = listed.map(|(index, it)| (format!("status.podIPs[{index}].ip"), it.ip.as_str())).collect();
    if texts.is_empty() {
        texts.extend(status.pod_ip.as_deref().map(|ip| ("status.podIP".to_owned(), ip)));
    }
    let mut found: Vec<IpAddr> = Vec::new();
    for (field, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        match parse_ip(text) {
            None => skips.add(field, text, SkipReason::InvalidIp),
            Some(address) if !may_be_endpoint(address) => skips.add(field, text, SkipReason::ForbiddenAddress),
            Some(address) if found.iter().any(|known| Family::of(*known) == Family::of(address)) => {}
            Some(address) => found.push(address),
        }
    }
    found
}

fn host_ports(spec: &core::PodSpec, skips: &mut Skips) -> Vec<HostPort> {
    let mut found: Vec<HostPort> = Vec::new();
    for (place, container) in containers(spec) {
        for (index, port) in container.ports.as_deref().unwrap_or_default().iter().enumerate() {
            let Some(wanted) = port.host_port.filter(|port| *port != 0) else { continue };
            let place = format!("{place}.ports[{index}]");
            match host_port(port, wanted) {
                Err((field, got, reason)) => skips.add(format!("{place}.{field}"), got, reason),
                Ok(port) if found.iter().any(|known| is_same(known, &port)) => {
                    skips.add(format!("{place}.hostPort"), wanted.to_string(), SkipReason::DuplicatePort);
                }
                Ok(port) => found.push(port),
            }
        }
    }
    found
}

fn is_same(a: &HostPort, b: &HostPort) -> bool {
    (a.host_ip, a.host_port, a.protocol) == (b.host_ip, b.host_port, b.protocol)
}

/// The field that makes no sense, what stands there and why it is refused.
type Refusal = (&'static str, String, SkipReason);

fn host_port(port: &core::ContainerPort, wanted: i32) -> Result<HostPort, Refusal> {
    let number = |field, number: i32| port_number(number).ok_or((field, number.to_string(), SkipReason::InvalidPort));
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let host_ip = match port.host_ip.as_deref().filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => Some(parse_ip(text).ok_or(("hostIP", text.to_owned(), SkipReason::InvalidIp))?),
    };
    Ok(HostPort {
        host_ip,
        host_port: number("hostPort", wanted)?,
        protocol: protocol
            .parse::<Protocol>()
            .map_err(|_| ("protocol", protocol.to_owned(), SkipReason::InvalidProtocol))?,
        port: number("containerPort", port.container_port)?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn reduce(spec: Value, status: Value) -> Reduced<Pod> {
        let metadata = json!({"name": "web-0", "namespace": "default"});
        let object = json!({"metadata": metadata, "spec": spec, "status": status});
        reduce_pod(&serde_json::from_value(object).expect("a Pod"))
    }

    fn running() -> Value {
        json!({"phase": "Running", "podIP": "10.244.1.10", "podIPs": [{"ip": "10.244.1.10"}, {"ip": "fd00::10"}]})
    }

    fn with_port(port: Value) -> Value {
        json!({"nodeName": "node-a", "containers": [{"name": "c", "ports": [port]}]})
    }

    #[test]
    fn host_ports_of_a_running_pod() {
        let spec = json!({
            "nodeName": "node-a",
            "containers": [
                {"name": "a", "ports": [{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81}]},
                {"name": "b", "ports": [
                    {"containerPort": 53, "hostPort": 53, "hostIP": "192.168.1.10", "protocol": "UDP"},
                    {"containerPort": 82, "hostPort": 8080},
                ]},
            ],
            "initContainers": [
                {"name": "once", "ports": [{"containerPort": 90, "hostPort": 9090}]},
                {"name": "sidecar", "restartPolicy": "Always", "ports": [{"containerPort": 91, "hostPort": 9091}]},
            ],
        });
        let Reduced { value, skips } = reduce(spec, running());
        let pod = value.expect("a Pod with host ports");
        assert_eq!(pod.name.to_string(), "default/pod/web-0");
        assert_eq!(&*pod.node, "node-a");
        assert_eq!(pod.addresses.len(), 2);
        let ports: Vec<_> = pod.host_ports.iter().map(|it| (it.host_port, it.port, it.protocol)).collect();
        assert_eq!(ports, [(8080, 80, Protocol::Tcp), (53, 53, Protocol::Udp), (9091, 91, Protocol::Tcp)]);
        assert_eq!(pod.host_ports[1].host_ip, parse_ip("192.168.1.10"));
        assert_eq!(skips.len(), 1, "{skips:?}");
        assert_eq!(
            skips[0].to_string(),
            "Pod default/web-0: spec.containers[1].ports[1].hostPort: expected each port once, got \"8080\""
        );
    }

    #[test]
    fn pods_that_need_nothing() {
        let port = with_port(json!({"containerPort": 80, "hostPort": 8080}));
        let mut own_network = port.clone();
        own_network["hostNetwork"] = json!(true);
        for (what, spec, status) in [
            ("no host port", with_port(json!({"containerPort": 80})), running()),
            ("the node's network", own_network, running()),
            ("it has ended", port.clone(), json!({"phase": "Succeeded", "podIPs": [{"ip": "10.244.1.10"}]})),
            ("it does not run yet", port, json!({"phase": "Pending"})),
        ] {
            let Reduced { value, skips } = reduce(spec, status);
            assert!(value.is_none() && skips.is_empty(), "{what}");
        }
    }

    #[test]
    fn malformed_parts_are_named() {
        for (port, field, reason) in [
            (json!({"containerPort": 80, "hostPort": 70000}), "hostPort", "invalid-port"),
            (json!({"containerPort": 0, "hostPort": 80}), "containerPort", "invalid-port"),
            (json!({"containerPort": 80, "hostPort": 80, "hostIP": "here"}), "hostIP", "invalid-ip"),
            (json!({"containerPort": 80, "hostPort": 80, "protocol": "tcp"}), "protocol", "invalid-protocol"),
        ] {
            let Reduced { value, skips } = reduce(with_port(port), running());
            assert!(value.is_some_and(|pod| pod.host_ports.is_empty()), "{field}");
            assert_eq!(skips[0].field, format!("spec.containers[0].ports[0].{field}"));
            assert_eq!(skips[0].reason.as_str(), reason);
        }
        let port = with_port(json!({"containerPort": 80, "hostPort": 80}));
        let Reduced { value, skips } = reduce(port, json!({"podIPs": [{"ip": "127.0.0.1"}, {"ip": "x"}]}));
        assert!(value.is_some_and(|pod| pod.addresses.is_empty()));
        let reasons: Vec<_> = skips.iter().map(|skip| skip.reason.as_str()).collect();
        assert_eq!(reasons, ["forbidden-address", "invalid-ip"]);
    }
}
