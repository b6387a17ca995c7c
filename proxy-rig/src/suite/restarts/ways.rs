//! Every way that a flow can take through Weir, and the world that has them all: two nodes, of which the first has the backends,
//! pods whose sockets are translated when they connect and pods whose packets are, a client outside.

use std::fmt;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    call::{Options, Proto},
    demo::{cluster::PodSpec, stage::Stage},
    world::{PodPath, Serve},
};

pub(super) struct Way {
    title: &'static str,
    pub(super) proto: Proto,
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    /// UDP: by `connect`, else by `sendto`.
    pub(super) connected: bool,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {} -> {}", self.title, self.proto, self.from, self.to)
    }
}

const fn tcp(title: &'static str, from: &'static str, to: &'static str) -> Way {
    Way { title, proto: Proto::Tcp, from, to, connected: true }
}

const fn udp(title: &'static str, from: &'static str, to: &'static str) -> Way {
    Way { title, proto: Proto::Udp, from, to, connected: true }
}

/// By the rig's plan of addresses; Services as in [`start`].
pub(super) const WAYS: [Way; 18] = [
    tcp("connect time, pod", "near", "10.96.0.1:80"),
    tcp("connect time, pod", "near", "[fd00:10:96::1]:80"),
    tcp("connect time, node", "node-2", "10.96.0.1:80"),
    tcp("connect time, node", "node-2", "[fd00:10:96::1]:80"),
    tcp("packets, pod of the node", "packet", "10.96.0.1:80"),
    tcp("packets, pod of the node", "packet", "[fd00:10:96::1]:80"),
    tcp("packets, pod elsewhere", "packet-2", "10.96.0.1:80"),
    tcp("packets, pod elsewhere", "packet-2", "[fd00:10:96::1]:80"),
    tcp("NodePort, local", "client", "172.18.0.11:30080"),
    tcp("NodePort, local", "client", "[fd00:172:18::11]:30080"),
    tcp("NodePort, remote", "client", "172.18.0.12:30080"),
    tcp("NodePort, remote", "client", "[fd00:172:18::12]:30080"),
    tcp("hairpin", "self", "10.96.0.2:80"),
    tcp("hairpin", "self", "[fd00:10:96::2]:80"),
    udp("connect time, pod", "near", "10.96.0.1:80"),
    Way { connected: false, ..udp("connect time, sendto", "near", "[fd00:10:96::1]:80") },
    udp("packets, pod of the node", "packet", "[fd00:10:96::1]:80"),
    udp("NodePort, remote", "client", "172.18.0.12:30080"),
];

fn service(name: &str, number: u8, node_port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "NodePort", "selector": {"app": name},
            "clusterIPs": [format!("10.96.0.{number}"), format!("fd00:10:96::{number}")],
            "ports": [
                {"name": "web", "port": 80, "targetPort": 8080, "nodePort": node_port},
                {"name": "web-udp", "port": 80, "targetPort": 8080, "nodePort": node_port, "protocol": "UDP"},
            ],
        },
    })
}

/// The Service that comes and goes, so that every kind of write has something to do.
pub(super) fn extra() -> Value {
    let mut extra = service("web", 9, 30089);
    extra["metadata"]["name"] = json!("extra");
    extra["spec"]["type"] = json!("LoadBalancer");
    extra["spec"]["loadBalancerSourceRanges"] = json!(["172.18.0.0/16", "fd00:172:18::/64"]);
    extra["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}, {"ip": "2001:db8:6::9"}]}});
    extra
}

/// Hosts and Services, without agents.
pub(super) async fn start() -> Result<Stage> {
    let mut stage = Stage::new("restarts")?;
    for name in ["node-1", "node-2"] {
        stage.add_node(name, Serve::nothing()).await?;
    }
    // The last is the Service that the pod is an endpoint of.
    let pods = [
        ("web-1", "node-1", PodPath::Connect, "web"),
        ("web-2", "node-1", PodPath::Connect, "web"),
        ("self", "node-1", PodPath::Packet, "self"),
        ("near", "node-1", PodPath::Connect, ""),
        ("packet", "node-1", PodPath::Packet, ""),
        ("packet-2", "node-2", PodPath::Packet, ""),
    ];
    for (name, node, path, app) in pods {
        let serve = if app.is_empty() { Serve::nothing() } else { Serve::ports(&[8080]) };
        let node = stage.node(node)?;
        let spec = PodSpec { labels: &[("app", app)], ..PodSpec::default() };
        stage.add_pod(&node, name, path, &spec, serve).await?;
    }
    stage.add_client("client", Serve::nothing()).await?;
    stage.cluster.put_service(service("web", 1, 30080))?;
    stage.cluster.put_service(service("self", 2, 30081))?;
    stage.cluster.publish()?;
    Ok(stage)
}

/// A new flow over every way.
pub(super) async fn new_flows_work(stage: &Stage, when: &str) -> Result<()> {
    for way in &WAYS {
        let options = Options { connected: way.connected, ..Options::default() };
        let result = stage.ask(way.from, way.proto, way.to.parse()?, options).await?;
        ensure!(result.pod().is_some(), "{when}: a new flow, {way}: {:?}", result.outcome);
    }
    Ok(())
}
