//! Random objects over few names, addresses and ports, so that they collide: valid, nearly valid, and with a part that
//! has another type than the API says.

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Map, Value, json};

use crate::sources::kubernetes::heard::Read;

/// Kind, namespace and name.
pub(super) type Identity = (&'static str, &'static str, &'static str);

/// An object as a server shows it.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub(super) identity: Identity,
    pub(super) text: Value,
    pub(super) read: Read,
}

pub(super) const NODES: [&str; 2] = ["node-a", "node-b"];
const NAMES: [(&str, &str); 5] =
    [("default", "a"), ("default", "a"), ("default", "b"), ("default", "b"), ("other", "a")];
const PODS: [(&str, &str); 2] = [("default", "p"), ("other", "p")];
const SLICES: [(&str, &str); 4] = [("default", "s"), ("default", "s"), ("default", "t"), ("other", "s")];
const CIDRS: [&str; 2] = ["kubernetes", "more"];
/// Own addresses of the node, endpoints, ClusterIPs and addresses of nobody meet in all roles.
const V4: [&str; 9] = [
    "80.1.1.1",
    "80.1.1.2",
    "10.96.0.1",
    "10.96.0.2",
    "10.97.0.1",
    "10.244.1.1",
    "10.244.1.2",
    "192.0.2.1",
    "192.0.2.2",
];
const V6: [&str; 6] = ["2001:db8::1", "2001:db8::2", "fd00:96::1", "fd00:96::2", "fd00:244::1", "fd00:1::1"];
/// No frontend or no endpoint may have these, or nobody can read them.
const BAD: [&str; 9] =
    ["127.0.0.1", "0.0.0.0", "::", "224.0.0.1", "169.254.1.1", "::ffff:10.96.0.1", "010.96.0.001", "10.96.0.256", "x"];
const PORTS: [i32; 4] = [80, 443, 8080, 53];
const BAD_PORTS: [i32; 3] = [0, -1, 70_000];
const NODE_PORTS: [i32; 3] = [30_001, 30_002, 80];
const PORT_NAMES: [&str; 5] = ["http", "http", "http", "dns", ""];
const ALGORITHMS: [&str; 7] = ["random", "rr", "rr", "lc", "lc", "maglev", "fastest"];
const WEIGHTS: [&str; 6] = ["", "1", "2", "0", "10.0.0.1=3,10.244.1.1=0", "x"];
const ZONES: [&str; 2] = ["z1", "z2"];
const RANGES: [&str; 7] =
    ["10.0.0.0/8", "192.0.2.0/24", "203.0.113.7/32", "0.0.0.0/0", "2001:db8::/32", "10.0.0.0/40", "none"];

/// Once in `times`.
fn once_in(random: &mut StdRng, times: u32) -> bool {
    random.random_ratio(1, times)
}

fn one<T: Copy>(random: &mut StdRng, of: &[T]) -> T {
    *of.choose(random).expect("the pools are not empty")
}

fn ip(random: &mut StdRng) -> &'static str {
    match random.random_range(0..20) {
        0 => one(random, &BAD),
        1..7 => one(random, &V6),
        _ => one(random, &V4),
    }
}

fn port(random: &mut StdRng) -> i32 {
    if once_in(random, 40) { one(random, &BAD_PORTS) } else { one(random, &PORTS) }
}

fn protocol(random: &mut StdRng) -> &'static str {
    if once_in(random, 5) { one(random, &["UDP", "UDP", "UDP", "SCTP", "tcp"]) } else { "TCP" }
}

/// Sometimes none.
fn some<T>(random: &mut StdRng, at_most: usize, mut make: impl FnMut(&mut StdRng) -> T) -> Vec<T> {
    let count = if once_in(random, 8) { 0 } else { random.random_range(1..=at_most) };
    (0..count).map(|_| make(random)).collect()
}

impl Object {
    pub(super) fn random(random: &mut StdRng) -> Self {
        let (kind, (namespace, name), mut text) = match random.random_range(0..20) {
            0..7 => ("Service", one(random, &NAMES), service(random)),
            7..15 => ("EndpointSlice", one(random, &SLICES), slice(random)),
            15..18 => ("Pod", one(random, &PODS), pod(random)),
            18 => ("Node", ("", one(random, &NODES)), node(random)),
            _ => ("ServiceCIDR", ("", one(random, &CIDRS)), service_cidr(random)),
        };
        if once_in(random, 16) {
            spoil(random, &mut text);
        }
        // Whatever else is wrong with it, it has a name.
        if !text.is_object() {
            text = json!({});
        }
        if !text["metadata"].is_object() {
            text["metadata"] = json!({});
        }
        text["metadata"]["name"] = json!(name);
        if !namespace.is_empty() {
            text["metadata"]["namespace"] = json!(namespace);
        }
        Self { identity: (kind, namespace, name), read: Read::new(kind, text.clone()), text }
    }
}

/// Puts something else in some place.
fn spoil(random: &mut StdRng, value: &mut Value) {
    let wrong =
        [Value::Null, json!(""), json!("x"), json!(-1), json!(70_000), json!(1.5), json!(true), json!([]), json!({})];
    let children: Vec<&mut Value> = match value {
        Value::Object(fields) => fields.values_mut().collect(),
        Value::Array(items) => items.iter_mut().collect(),
        _ => Vec::new(),
    };
    let count = children.len();
    if count > 0 && !once_in(random, 6) {
        let chosen = random.random_range(0..count);
        if let Some(child) = children.into_iter().nth(chosen) {
            return spoil(random, child);
        }
    }
    *value = wrong.choose(random).cloned().unwrap_or_default();
}

fn metadata(random: &mut StdRng) -> Value {
    let mut metadata = json!({});
    if !once_in(random, 4) {
        metadata["creationTimestamp"] = json!(format!("2026-01-01T00:00:0{}Z", random.random_range(0..3)));
    }
    metadata
}

fn service(random: &mut StdRng) -> Value {
    let mut metadata = metadata(random);
    if once_in(random, 14) {
        metadata["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    }
    if once_in(random, 4) {
        metadata["annotations"] = json!({"weir.dev/algorithm": one(random, &ALGORITHMS)});
    }
    let number = random.random_range(1..4);
    let mut ips = vec![format!("10.96.0.{number}"), format!("fd00:96::{number}")];
    match random.random_range(0..16) {
        0 => ips = vec!["None".to_owned()],
        1 => ips = vec![ip(random).to_owned()],
        2 => ips = Vec::new(),
        3..5 => ips.reverse(),
        5..9 => ips.truncate(1),
        9 => drop(ips.remove(0)),
        _ => {}
    }
    let kind = one(random, &["ClusterIP", "NodePort", "LoadBalancer"]);
    let mut spec = json!({
        "type": if once_in(random, 12) { "ExternalName" } else { kind },
        "clusterIPs": ips,
        "ports": some(random, 3, service_port),
    });
    if let Some(first) = ips.first().filter(|_| !once_in(random, 10)) {
        spec["clusterIP"] = json!(first);
    }
    if once_in(random, 3) {
        spec["externalIPs"] = json!(some(random, 2, ip));
    }
    for field in ["internalTrafficPolicy", "externalTrafficPolicy"] {
        if once_in(random, 3) {
            spec[field] = json!(one(random, &["Local", "Local", "Local", "Cluster", "local"]));
        }
    }
    if once_in(random, 5) {
        spec["sessionAffinity"] = json!(one(random, &["ClientIP", "ClientIP", "None", "x"]));
        spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": one(random, &[1, 60, 0, 100_000])}});
    }
    if once_in(random, 4) {
        spec["loadBalancerSourceRanges"] = json!(some(random, 2, |random| one(random, &RANGES)));
    }
    if once_in(random, 5) {
        spec["trafficDistribution"] = json!(one(random, &["PreferClose", "PreferSameZone", "PreferSameNode", "x"]));
    }
    let status = if once_in(random, 3) { load_balancer(random) } else { json!({}) };
    json!({"metadata": metadata, "spec": spec, "status": status})
}

fn load_balancer(random: &mut StdRng) -> Value {
    let ingress = some(random, 2, |random| {
        let mut point = json!({"ip": ip(random)});
        if once_in(random, 3) {
            point["ipMode"] = json!(one(random, &["VIP", "Proxy", "x"]));
        }
        point
    });
    json!({"loadBalancer": {"ingress": ingress}})
}

fn service_port(random: &mut StdRng) -> Value {
    let mut found = json!({"name": one(random, &PORT_NAMES), "port": port(random), "protocol": protocol(random)});
    if !once_in(random, 3) {
        found["nodePort"] = json!(one(random, &NODE_PORTS));
    }
    found
}

fn slice(random: &mut StdRng) -> Value {
    let mut labels = Map::new();
    if !once_in(random, 20) {
        labels.insert("kubernetes.io/service-name".into(), json!(one(random, &["a", "b"])));
    }
    if once_in(random, 16) {
        labels.insert("service.kubernetes.io/headless".into(), json!(""));
    }
    let kinds = ["IPv4", "IPv4", "IPv4", "IPv4", "IPv6", "IPv6", "FQDN", "x"];
    let kind = if once_in(random, 10) { one(random, &kinds) } else { one(random, &kinds[..6]) };
    let pool: &[&str] = if kind == "IPv6" { &V6 } else { &V4[5..] };
    let ports = some(
        random,
        2,
        |random| json!({"name": one(random, &PORT_NAMES), "port": port(random), "protocol": protocol(random)}),
    );
    json!({
        "metadata": {"labels": labels, "annotations": {"weir.dev/weight": one(random, &WEIGHTS)}},
        "addressType": kind,
        "ports": ports,
        "endpoints": some(random, 3, |random| endpoint(random, pool)),
    })
}

fn endpoint(random: &mut StdRng, pool: &[&'static str]) -> Value {
    let address = if once_in(random, 12) { ip(random) } else { one(random, pool) };
    let mut found = json!({"addresses": [address]});
    if !once_in(random, 4) {
        found["nodeName"] = json!(one(random, &NODES));
    }
    if once_in(random, 2) {
        let (ready, serving, terminating) =
            one(random, &[(true, true, false), (false, true, true), (false, false, true), (false, false, false)]);
        found["conditions"] = json!({"ready": ready, "serving": serving, "terminating": terminating});
    }
    if once_in(random, 3) {
        found["zone"] = json!(one(random, &ZONES));
        found["hints"] = json!({"forZones": [{"name": one(random, &ZONES)}]});
        if once_in(random, 2) {
            found["hints"]["forNodes"] = json!([{"name": one(random, &NODES)}]);
        }
    }
    found
}

fn pod(random: &mut StdRng) -> Value {
    let ports = some(random, 3, |random| {
        let mut found = json!({"containerPort": port(random), "protocol": protocol(random)});
        if !once_in(random, 5) {
            found["hostPort"] = json!(one(random, &[80, 8080, 30_001, 70_000, 6443]));
        }
        if once_in(random, 3) {
            found["hostIP"] = json!(one(random, &["192.0.2.1", "192.0.2.2", "0.0.0.0", "::", "127.0.0.1", "", "x"]));
        }
        found
    });
    let spec = json!({
        "nodeName": one(random, &["node-a", "node-a", "node-a", "node-b"]),
        "hostNetwork": once_in(random, 12),
        "containers": [{"name": "c", "ports": ports}],
    });
    let phase = one(random, &["Running", "Running", "Running", "Running", "Pending", "Succeeded"]);
    let ips = some(random, 2, |random| json!({"ip": ip(random)}));
    json!({"metadata": metadata(random), "spec": spec, "status": {"phase": phase, "podIPs": ips}})
}

fn node(random: &mut StdRng) -> Value {
    let mut metadata = json!({});
    if !once_in(random, 4) {
        metadata["labels"] = json!({"topology.kubernetes.io/zone": one(random, &ZONES)});
    }
    let addresses = some(random, 3, |random| {
        let kind = one(random, &["InternalIP", "ExternalIP", "Hostname"]);
        json!({"type": kind, "address": one(random, &["192.0.2.1", "192.0.2.2", "fd00:1::1", "80.1.1.1", "x"])})
    });
    json!({"metadata": metadata, "spec": {}, "status": {"addresses": addresses}})
}

fn service_cidr(random: &mut StdRng) -> Value {
    let mut found = json!({
        "metadata": {},
        "spec": {"cidrs": some(random, 2, |random| {
            one(random, &["10.96.0.0/16", "10.96.0.0/12", "10.97.0.0/16", "fd00:96::/112", "0.0.0.0/0", "80.1.1.0/24", "x"])
        })},
    });
    if once_in(random, 4) {
        let status = one(random, &["True", "False"]);
        let ready = json!({"type": "Ready", "status": status, "reason": "", "message": "",
                           "lastTransitionTime": "2026-01-01T00:00:00Z"});
        found["status"] = json!({"conditions": [ready]});
    }
    found
}
