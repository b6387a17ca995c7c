//! Random Services and EndpointSlices, valid and nearly valid, over the small pools of addresses and ports that the packets
//! draw from too.

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};

/// Services of a round.
pub(super) const SERVICES: usize = 6;
pub(super) const PORTS: [u16; 6] = [80, 443, 53, 8080, 9376, 5353];
pub(super) const NODE_PORTS: [u16; 4] = [30080, 30053, 30443, 30100];
pub(super) const EXTERNAL_V4: [&str; 3] = ["80.11.12.10", "80.11.12.11", "192.168.1.10"];
pub(super) const EXTERNAL_V6: [&str; 2] = ["2001:db8:1::10", "2001:db8:1::11"];
pub(super) const LB_V4: [&str; 2] = ["192.0.2.127", "192.0.2.128"];
pub(super) const LB_V6: [&str; 2] = ["2001:db8:1::127", "2001:db8:1::128"];
pub(super) const BACKENDS_V4: [&str; 9] = [
    "10.244.1.10",
    "10.244.1.11",
    "10.244.1.12",
    "10.244.2.20",
    "10.244.2.21",
    "10.244.2.22",
    "192.168.1.10",
    "192.168.1.11",
    "127.0.0.1",
];
pub(super) const BACKENDS_V6: [&str; 7] =
    ["fd00:244:1::10", "fd00:244:1::11", "fd00:244:2::20", "fd00:244:2::21", "fd00:1::10", "fd00:1::11", "::1"];
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

pub(super) fn cluster_v4(number: usize) -> String {
    format!("10.96.0.{}", 10 + number)
}

pub(super) fn cluster_v6(number: usize) -> String {
    format!("fd00:96::{:x}", 16 + number)
}

fn one<T: Copy>(random: &mut StdRng, of: &[T]) -> T {
    *of.choose(random).expect("invariant: the pools are not empty")
}

/// Service number `number` with its slices. The same number again is the same Service, changed.
pub(super) fn service(random: &mut StdRng, number: usize) -> Vec<Value> {
    let name = format!("s{number}");
    let ports = ports(random);
    let mut ips = Vec::new();
    let families = random.random_range(0..8);
    if families != 0 {
        ips.push(cluster_v4(number));
    }
    if families != 1 {
        ips.push(cluster_v6(number));
    }
    if random.random_bool(0.05) {
        ips = vec!["None".to_owned()];
    }
    let mut spec = json!({
        "clusterIP": ips[0],
        "clusterIPs": ips,
        "type": one(random, &["ClusterIP", "NodePort", "NodePort", "LoadBalancer", "LoadBalancer"]),
        "ports": ports,
    });
    let mut status = json!({});
    decorate(random, &mut spec, &mut status);
    let mut metadata = json!({"name": name});
    if random.random_bool(0.6) {
        let algorithm = one(random, &["random", "rr", "maglev", "maglev-5tuple", "lc", "sed", "best"]);
        metadata["annotations"] = json!({"weir.dev/algorithm": algorithm});
    }
    let mut objects = vec![json!({"kind": "Service", "metadata": metadata, "spec": spec, "status": status})];
    for family in 0..2 {
        if random.random_bool(0.85) {
            objects.push(slice(random, &name, &ports, family == 1));
        }
    }
    objects
}

fn ports(random: &mut StdRng) -> Vec<Value> {
    let count = random.random_range(1..=3);
    (0..count)
        .map(|i| {
            let mut port = json!({
                "name": format!("p{i}"),
                "port": one(random, &PORTS),
                "protocol": one(random, &PROTOCOLS),
            });
            if random.random_bool(0.8) {
                port["nodePort"] = json!(one(random, &NODE_PORTS));
            }
            port
        })
        .collect()
}

fn decorate(random: &mut StdRng, spec: &mut Value, status: &mut Value) {
    if random.random_bool(0.3) {
        let v4 = one(random, &EXTERNAL_V4);
        let v6 = one(random, &EXTERNAL_V6);
        spec["externalIPs"] = json!([v4, v6]);
    }
    if random.random_bool(0.5) {
        let (v4, v6) = (one(random, &LB_V4), one(random, &LB_V6));
        *status = json!({"loadBalancer": {"ingress": [{"ip": v4}, {"ip": v6}]}});
        if random.random_bool(0.2) {
            status["loadBalancer"]["ingress"][0]["ipMode"] = json!(one(random, &["Proxy", "VIP"]));
        }
    }
    if random.random_bool(0.2) {
        spec["sessionAffinity"] = json!("ClientIP");
        let timeout = one(random, &[1, 100, 10800]);
        spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": timeout}});
    }
    if random.random_bool(0.3) {
        spec["externalTrafficPolicy"] = json!("Local");
    }
    if random.random_bool(0.2) {
        spec["internalTrafficPolicy"] = json!("Local");
    }
    if random.random_bool(0.15) {
        let range = one(random, &["203.0.113.0/30", "203.0.113.2/32", "0.0.0.0/0", "192.168.1.0/24"]);
        spec["loadBalancerSourceRanges"] = json!([range, "2001:db8::/127"]);
    }
    if random.random_bool(0.2) {
        spec["trafficDistribution"] = json!(one(random, &["PreferClose", "PreferSameNode"]));
    }
}

fn slice(random: &mut StdRng, service: &str, ports: &[Value], v6: bool) -> Value {
    let pool: &[&str] = if v6 { &BACKENDS_V6 } else { &BACKENDS_V4 };
    let count = one(random, &[0, 1, 1, 2, 3, 5]);
    let mut endpoints = Vec::new();
    for _ in 0..count {
        let address = one(random, pool);
        let here = ["10.244.1.", "fd00:244:1:", "192.168.1.10", "fd00:1::10"].iter().any(|it| address.starts_with(it));
        let (ready, serving, terminating) = one(
            random,
            &[(true, true, false), (true, true, false), (true, true, false), (false, true, true), (false, false, true)],
        );
        let mut endpoint = json!({
            "addresses": [address],
            "nodeName": if here { "node-a" } else { "node-b" },
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        });
        if random.random_bool(0.15) {
            endpoint["hints"] = json!({"forZones": [{"name": one(random, &["zone-a", "zone-b"])}]});
        }
        endpoints.push(endpoint);
    }
    let ports: Vec<Value> = ports
        .iter()
        .map(|port| json!({"name": port["name"], "protocol": port["protocol"], "port": one(random, &[9376, 5353, 80])}))
        .collect();
    json!({
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{}", if v6 { 6 } else { 4 }),
            "labels": {"kubernetes.io/service-name": service},
            "annotations": {"weir.dev/weight": one(random, &["1", "", "3,10.244.1.10=1", "2,10.244.2.20=5", "10.244.1.11=0", "x"])},
        },
        "addressType": if v6 { "IPv6" } else { "IPv4" },
        "ports": ports,
        "endpoints": endpoints,
    })
}
