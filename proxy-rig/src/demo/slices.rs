//! EndpointSlices and Pod objects out of Services and pods, as the control plane would write them.
//! Called by `cluster`.

use std::{collections::BTreeMap, net::IpAddr};

use serde_json::{Value, json};

use super::cluster::{Workload, identity};

/// Ports of one slice: name, protocol, number.
type Ports = Vec<(String, String, u16)>;

/// One slice for each address family of the Service and each set of port numbers: a named target
/// port may differ from pod to pod. A Service without selector has none.
pub(super) fn slices_of<'a>(service: &Value, pods: impl Iterator<Item = &'a Workload>) -> Vec<Value> {
    let mut groups: BTreeMap<Ports, Vec<&Workload>> = BTreeMap::new();
    for pod in pods.filter(|pod| selects(service, pod)) {
        groups.entry(ports_of(service, pod)).or_default().push(pod);
    }
    let mut slices = Vec::new();
    for (index, (ports, pods)) in groups.into_iter().enumerate() {
        for family in families_of(service) {
            slices.push(slice(service, family, index, &ports, &pods));
        }
    }
    slices
}

/// Whether the pod is one of the Service's.
pub(super) fn selects(service: &Value, pod: &Workload) -> bool {
    let Some(selector) = service["spec"]["selector"].as_object().filter(|selector| !selector.is_empty()) else {
        return false;
    };
    identity(service).split('/').next() == Some(&pod.namespace)
        && selector.iter().all(|(key, value)| pod.labels.get(key).map(String::as_str) == value.as_str())
}

/// The Pod object.
pub(super) fn pod_object(pod: &Workload) -> Value {
    let ports: Vec<Value> =
        pod.named_ports.iter().map(|(name, port)| json!({"name": name, "containerPort": port})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": pod.namespace, "labels": pod.labels},
        "spec": {"nodeName": pod.node, "containers": [{"name": "main", "ports": ports}]},
        "status": {
            "phase": "Running",
            "podIP": pod.addresses[0],
            "podIPs": pod.addresses.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>(),
            "conditions": [{"type": "Ready", "status": if pod.ready { "True" } else { "False" }}],
        },
    })
}

fn slice(service: &Value, family: &str, index: usize, ports: &Ports, pods: &[&Workload]) -> Value {
    let identity = identity(service);
    let (namespace, name) = identity.split_once('/').unwrap_or(("default", &identity));
    let mut labels = json!({"kubernetes.io/service-name": name});
    if service["spec"]["clusterIP"] == "None" {
        labels["service.kubernetes.io/headless"] = json!("");
    }
    let place = usize::from(family == "IPv6");
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|pod| {
            json!({
                "addresses": [pod.addresses[place]],
                "nodeName": pod.node,
                "conditions": {
                    "ready": pod.ready && !pod.terminating, "serving": pod.ready, "terminating": pod.terminating,
                },
                "targetRef": {"kind": "Pod", "namespace": pod.namespace, "name": pod.name},
            })
        })
        .collect();
    let ports: Vec<Value> =
        ports.iter().map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port})).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": namespace, "name": format!("{name}-{}-{index}", family.to_lowercase()), "labels": labels,
        },
        "addressType": family, "endpoints": endpoints, "ports": ports,
    })
}

/// Families in the order of the Service's own addresses; headless ones get IPv4.
fn families_of(service: &Value) -> Vec<&'static str> {
    let spec = &service["spec"];
    let several = spec["clusterIPs"].as_array().cloned();
    let addresses = several.unwrap_or_else(|| vec![spec["clusterIP"].clone()]);
    let mut families: Vec<_> = addresses
        .iter()
        .filter_map(|ip| ip.as_str()?.parse::<IpAddr>().ok())
        .map(|ip| if ip.is_ipv4() { "IPv4" } else { "IPv6" })
        .collect();
    if families.is_empty() {
        families.push("IPv4");
    }
    families
}

/// Ports that the pod does not name are left out, as the control plane does.
fn ports_of(service: &Value, pod: &Workload) -> Ports {
    let port = |value: &Value| value.as_u64().and_then(|number| u16::try_from(number).ok());
    let mut found = Ports::new();
    for entry in service["spec"]["ports"].as_array().into_iter().flatten() {
        let target = match &entry["targetPort"] {
            Value::String(name) => pod.named_ports.get(name).copied(),
            Value::Null => port(&entry["port"]),
            number => port(number),
        };
        if let Some(target) = target {
            let text = |field: &str, default: &str| entry[field].as_str().unwrap_or(default).to_owned();
            found.push((text("name", ""), text("protocol", "TCP"), target));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, named_port: u16) -> Workload {
        Workload {
            name: name.into(),
            namespace: "default".into(),
            node: "node-1".into(),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            addresses: ["10.244.1.1".into(), "fd00::1".into()],
            named_ports: [("http".to_owned(), named_port)].into(),
            ready: true,
            terminating: false,
        }
    }

    #[test]
    fn a_named_port_that_differs_makes_two_slices() {
        let service = json!({
            "metadata": {"name": "web"},
            "spec": {
                "clusterIPs": ["10.0.0.1", "fd00:10::1"], "selector": {"app": "web"},
                "ports": [{"name": "web", "port": 80, "targetPort": "http"}],
            },
        });
        let pods = [pod("a", 8080), pod("b", 8081)];
        let slices = slices_of(&service, pods.iter());
        assert_eq!(slices.len(), 4);
        assert_eq!(slices[0]["ports"][0]["port"], 8080);
        assert_eq!(slices[1]["addressType"], "IPv6");
        assert_eq!(slices[1]["endpoints"][0]["addresses"][0], "fd00::1");
        assert_eq!(slices[2]["metadata"]["name"], "web-ipv4-1");
    }

    #[test]
    fn selectors_decide() {
        let pods = [pod("a", 80)];
        for selector in [json!({"app": "other"}), json!({}), Value::Null] {
            let service = json!({"metadata": {"name": "x"}, "spec": {"selector": selector, "ports": [{"port": 80}]}});
            assert!(slices_of(&service, pods.iter()).is_empty());
        }
        let elsewhere = json!({"metadata": {"name": "x", "namespace": "prod"}, "spec": {"selector": {"app": "web"}}});
        assert!(slices_of(&elsewhere, pods.iter()).is_empty());
    }
}
