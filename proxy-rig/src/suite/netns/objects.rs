//! Rules that only a change of objects or addresses shows, with real sockets: host ports, addresses that go, hints and
//! conditions of slices written by hand.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures::future::FutureExt;
use serde_json::json;

use super::{
    flows::{OwnTest, settles},
    small,
    sockets::socket,
};
use crate::{
    call::{Options, Outcome, Proto},
    demo::stage::Stage,
};

pub(super) const TESTS: &[OwnTest] = &[
    ("host_ports_from_everywhere", "20", || host_ports().boxed()),
    ("a_node_port_wins_over_a_host_port", "20", || host_port_and_node_port().boxed()),
    ("an_external_address_that_goes_leaves_its_connections", "14, Choices", || external_address_goes().boxed()),
    ("an_external_address_moves_to_another_node", "Choices", || external_address_moves().boxed()),
    ("slices_by_hand", "3, 4, 5, 7", || slices_by_hand().boxed()),
];

const SOON: Duration = Duration::from_secs(1);
const HOST_PORT: u16 = 8088;
/// Outside of what the rig gives to hosts, on the fabric that all nodes and clients share.
const VIP: &str = "172.18.0.61";

/// A Pod object that gives `web-1` a host port over both protocols.
fn hosted(stage: &Stage, port: u16) -> Result<String> {
    let [v4, v6] = stage.peer("web-1")?.host.addresses();
    let ports: Vec<_> =
        ["TCP", "UDP"].map(|protocol| json!({"containerPort": 8080, "hostPort": port, "protocol": protocol})).to_vec();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "hosted", "namespace": "default"},
        "spec": {"nodeName": "node-1", "containers": [{"name": "c", "ports": ports}]},
        "status": {"phase": "Running", "podIPs": [{"ip": v4}, {"ip": v6}]},
    });
    Ok(pod.to_string())
}

async fn host_ports() -> Result<()> {
    let mut stage = small::start(&[]).await?;
    let pod = hosted(&stage, HOST_PORT)?;
    stage.cluster.put_file("host-port.yaml", &pod)?;
    let [v4, v6] = stage.peer("node-1")?.host.addresses().map(|ip| SocketAddr::new(ip, HOST_PORT));
    for to in [v4, v6] {
        for from in ["client", "near", "packet", "web-1", "web-2", "node-1", "node-2"] {
            for proto in [Proto::Tcp, Proto::Udp] {
                stage.ask_until(from, proto, to, SOON, |result| result.pod() == Some("web-1")).await?;
            }
        }
        let reply = stage.ask("client", Proto::Tcp, to, Options::default()).await?;
        let seen = reply.answered()?.client.ip();
        ensure!(seen == stage.address("client", to.ip())?, "the pod sees {seen} instead of the client");
    }
    for to in ["127.0.0.1", "::1"] {
        let to = socket(to, HOST_PORT)?;
        for proto in [Proto::Tcp, Proto::Udp] {
            stage.ask_until("node-1", proto, to, SOON, |result| result.pod() == Some("web-1")).await?;
        }
        let result = stage.ask("near", Proto::Tcp, to, Options::default()).await?;
        ensure!(result.pod().is_none(), "a pod's own loopback leads to the host port");
    }
    // Only this node has it, and only for as long as the pod is there.
    let elsewhere = SocketAddr::new(stage.peer("node-2")?.host.ipv4().into(), HOST_PORT);
    let result = stage.ask("client", Proto::Tcp, elsewhere, Options::default()).await?;
    ensure!(result.outcome == Outcome::Refused, "{elsewhere}: {:?}", result.outcome);
    stage.cluster.put_file("host-port.yaml", "")?;
    settles(&stage, "client", v4, |result| result.outcome == Outcome::Refused).await
}

async fn host_port_and_node_port() -> Result<()> {
    let mut stage = small::start(&[]).await?;
    stage.cluster.remove_pod("web-1");
    stage.cluster.publish()?;
    let pod = hosted(&stage, small::NODE_PORT)?;
    stage.cluster.put_file("host-port.yaml", &pod)?;
    // The Service has the other pod only.
    settles(&stage, "client", small::NODE_1, |result| result.pod() == Some("web-2")).await?;
    stage.cluster.remove_service("default", "web")?;
    settles(&stage, "client", small::NODE_1, |result| result.pod() == Some("web-1")).await?;
    settles(&stage, "client", small::NODE_2, |result| result.outcome == Outcome::Refused).await
}

fn with_vip() -> serde_json::Value {
    small::service(|service| service["spec"]["externalIPs"] = json!([VIP]))
}

async fn external_address_goes() -> Result<()> {
    let mut stage = small::start(&[]).await?;
    let vip = socket(VIP, 80)?;
    stage.node("node-1")?.add_address(&format!("{VIP}/32"))?;
    stage.cluster.put_service(with_vip())?;
    stage.ask_until("client", Proto::Tcp, vip, SOON, |result| result.pod().is_some()).await?;
    let mut cluster = stage.take_cluster();
    let mut sessions = Vec::new();
    // Enough that both backends have one.
    for _ in 0..8 {
        let session = stage.actor("client")?.open(Proto::Tcp, vip.ip(), vip.port()).await?;
        session.send().await?.answered()?;
        sessions.push(session);
    }
    cluster.put_service(small::service(|_| {}))?;
    settles(&stage, "client", vip, |result| result.outcome == Outcome::Refused).await?;
    for session in &sessions {
        session.send().await?.answered().context("without the external address")?;
    }
    cluster.remove_service("default", "web")?;
    settles(&stage, "client", small::NODE_1, |result| result.outcome == Outcome::Refused).await?;
    for session in &sessions {
        session.send().await?.answered().context("without the Service")?;
    }
    Ok(())
}

/// As kube-vip does it: the address is bound on one node at a time, whose ARP answers move it.
async fn external_address_moves() -> Result<()> {
    let mut stage = small::start(&[]).await?;
    let vip = socket(VIP, 80)?;
    stage.cluster.put_service(with_vip())?;
    let cidr = format!("{VIP}/32");
    stage.node("node-1")?.add_address(&cidr)?;
    stage.ask_until("client", Proto::Tcp, vip, SOON, |result| result.pod().is_some()).await?;
    let device = |verb: &str| vec![format!("addr {verb} {cidr} dev eth0")];
    stage.node("node-1")?.ip(&device("del"))?;
    stage.node("node-2")?.ip(&device("add"))?;
    stage.peer("client")?.host.ip(&["neigh flush all".to_owned()])?;
    settles(&stage, "client", vip, |result| result.pod().is_some()).await?;
    // The rest of the address is the node's own.
    let other = SocketAddr::new(vip.ip(), 81);
    let result = stage.ask("client", Proto::Tcp, other, Options::default()).await?;
    ensure!(result.outcome == Outcome::Refused, "{other}: {:?}", result.outcome);
    // From inside it works on every node, whoever has it.
    for from in ["near", "packet", "node-1", "node-2"] {
        stage.ask_until(from, Proto::Tcp, vip, SOON, |result| result.pod().is_some()).await?;
    }
    Ok(())
}

async fn slices_by_hand() -> Result<()> {
    let mut stage = small::start(&[]).await?;
    let to = socket("10.96.0.7", 80)?;
    let pods = [stage.peer("web-1")?.host.ipv4(), stage.peer("web-2")?.host.ipv4()].map(IpAddr::from);
    let slice = |name: &str, endpoints: &[serde_json::Value]| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": "manual"}},
            "addressType": "IPv4", "ports": [{"name": "web", "port": 8080}], "endpoints": endpoints,
        })
        .to_string()
    };
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "manual", "namespace": "default"},
        "spec": {"clusterIP": "10.96.0.7", "ports": [{"name": "web", "port": 80}]},
    });
    let endpoint = |pod: usize, conditions: serde_json::Value| {
        json!({"addresses": [pods[pod]], "nodeName": format!("node-{}", pod + 1), "conditions": conditions,
               "hints": {"forNodes": [{"name": format!("node-{}", pod + 1)}]}})
    };
    let text = |slices: &[String]| format!("{service}\n---\n{}\n", slices.join("\n---\n"));

    // Both carry hints, and each node uses its own.
    let both = [slice("a", &[endpoint(0, json!({})), endpoint(1, json!({}))])];
    stage.cluster.put_file("manual.yaml", &text(&both))?;
    for (from, pod) in [("near", "web-1"), ("packet", "web-1"), ("node-2", "web-2")] {
        settles_on(&stage, from, to, Some(pod)).await?;
    }
    // A terminating copy of web-1 changes nothing, whatever its slice is called.
    let gone = json!({"ready": false, "serving": true, "terminating": true});
    let copies =
        [slice("a", &[endpoint(0, gone.clone())]), slice("b", &[endpoint(0, json!({})), endpoint(1, json!({}))])];
    stage.cluster.put_file("manual.yaml", &text(&copies))?;
    settles_on(&stage, "near", to, Some("web-1")).await?;
    // It terminates: the one of the other node is the only ready one, and its hint names that node only.
    let leaving = [slice("a", &[endpoint(0, gone.clone()), endpoint(1, json!({}))])];
    stage.cluster.put_file("manual.yaml", &text(&leaving))?;
    settles_on(&stage, "near", to, Some("web-2")).await?;
    // Nothing is ready: who terminates and serves is used, without regard to hints.
    let unready = json!({"ready": false});
    let last = [slice("a", &[endpoint(0, gone), endpoint(1, unready.clone())])];
    stage.cluster.put_file("manual.yaml", &text(&last))?;
    for from in ["near", "packet", "node-2"] {
        settles_on(&stage, from, to, Some("web-1")).await?;
    }
    let none = [slice("a", &[endpoint(0, unready.clone()), endpoint(1, unready)])];
    stage.cluster.put_file("manual.yaml", &text(&none))?;
    settles(&stage, "near", to, |result| result.outcome == Outcome::Refused).await
}

async fn settles_on(stage: &Stage, from: &str, to: SocketAddr, pod: Option<&str>) -> Result<()> {
    settles(stage, from, to, |result| result.pod() == pod).await
}
