//! The world of tests that change something: two nodes, one backend on each, clients; one per test.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    call::{Options, Proto},
    demo::{cluster::PodSpec, stage::Stage},
    world::{Agent, PodPath, Serve},
};

pub(super) const CLUSTER_IP: SocketAddr = v4([10, 96, 0, 1], 80);
pub(in crate::suite) const NODE_PORT: u16 = 30080;
/// Of the nodes, by the rig's plan of addresses.
pub(super) const NODE_1: SocketAddr = v4([172, 18, 0, 11], NODE_PORT);
pub(super) const NODE_2: SocketAddr = v4([172, 18, 0, 12], NODE_PORT);
/// Every way to the Service: who calls, and where.
pub(super) const WAYS: [(&str, SocketAddr); 5] =
    [("near", CLUSTER_IP), ("packet", CLUSTER_IP), ("node-1", CLUSTER_IP), ("client", NODE_1), ("client", NODE_2)];

const fn v4(ip: [u8; 4], port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3])), port)
}

/// The Service `web` with what a test wants to be different.
pub(super) fn service(change: impl FnOnce(&mut Value)) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "type": "NodePort", "clusterIPs": ["10.96.0.1", "fd00:10:96::1"], "selector": {"app": "web"},
            "ports": [
                {"name": "web", "port": 80, "targetPort": 8080, "nodePort": NODE_PORT},
                {"name": "web-udp", "port": 80, "targetPort": 8080, "nodePort": NODE_PORT, "protocol": "UDP"},
            ],
        },
    });
    change(&mut service);
    service
}

/// The hosts, without Service and agents.
pub(super) async fn hosts() -> Result<Stage> {
    let mut stage = Stage::new("netns-suite")?;
    for name in ["node-1", "node-2"] {
        stage.add_node(name, Serve::nothing()).await?;
    }
    add_web(&mut stage, "web-1", "node-1").await?;
    add_web(&mut stage, "web-2", "node-2").await?;
    for (name, path) in [("near", PodPath::Connect), ("packet", PodPath::Packet)] {
        let node = stage.node("node-1")?;
        stage.add_pod(&node, name, path, &PodSpec::default(), Serve::nothing()).await?;
    }
    stage.add_client("client", Serve::nothing()).await?;
    Ok(stage)
}

/// The whole world with its agents running.
pub(super) async fn start(args: &[&str]) -> Result<Stage> {
    let mut stage = hosts().await?;
    stage.cluster.put_service(service(|_| {}))?;
    stage.start_agents(args).await?;
    Ok(stage)
}

/// The world with `service`, and an agent on node-1 alone: the way to node-2 begins there.
pub(super) async fn one_agent(service: Value, args: &[&str]) -> Result<(Stage, BTreeMap<String, Agent>)> {
    let mut stage = hosts().await?;
    stage.cluster.put_service(service)?;
    let node = stage.node("node-1")?;
    stage.start_agent(&node, args)?;
    let mut agents = stage.take_agents();
    for agent in agents.values_mut() {
        agent.wait_ready().await?;
    }
    Ok((stage, agents))
}

pub(super) async fn add_web(stage: &mut Stage, name: &str, node: &str) -> Result<()> {
    let node = stage.node(node)?;
    let spec = PodSpec { labels: &[("app", "web")], ..PodSpec::default() };
    stage.add_pod(&node, name, PodPath::Connect, &spec, Serve::ports(&[8080])).await
}

/// Every way gets its answer over both protocols.
pub(super) async fn all_ways_work(stage: &Stage) -> Result<()> {
    for (from, to) in WAYS {
        for proto in [Proto::Tcp, Proto::Udp] {
            let result = stage.ask(from, proto, to, Options::default()).await?;
            let reply = result.answered().with_context(|| format!("{from} -> {to} {proto:?}"))?;
            ensure!(reply.pod.starts_with("web-"), "{from} -> {to}: {reply:?}");
        }
    }
    Ok(())
}
