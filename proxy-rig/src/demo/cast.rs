//! Who plays in the demo: three nodes, their pods, a client and a database outside.

use anyhow::Result;

use super::{cluster::PodSpec, progress::Progress, stage::Stage};
use crate::world::{PodPath, Serve};

const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];
/// The outside endpoint of examples/no-selector.yaml.
const DATABASE: &str = "192.0.2.42/32";
const BALANCER: &str = "192.0.2.127/32";
const EXTERNAL_IP: &str = "80.11.12.10/32";

struct Role {
    name: &'static str,
    node: &'static str,
    path: PodPath,
    label: (&'static str, &'static str),
    ports: &'static [u16],
}

const fn role(
    name: &'static str,
    node: &'static str,
    path: PodPath,
    label: (&'static str, &'static str),
    ports: &'static [u16],
) -> Role {
    Role { name, node, path, label, ports }
}

const PODS: &[Role] = &[
    role("nginx-1", "node-1", PodPath::Connect, ("run", "my-nginx"), &[80, 443]),
    role("nginx-2", "node-2", PodPath::Packet, ("run", "my-nginx"), &[80, 443]),
    role("app-1", "node-1", PodPath::Connect, ("app", "MyApp"), &[9376, 9377]),
    role("app-2", "node-2", PodPath::Connect, ("app", "MyApp"), &[9376, 9377]),
    role("example-2", "node-2", PodPath::Packet, ("app", "example"), &[9376]),
    role("proxy-1", "node-1", PodPath::Connect, ("app.kubernetes.io/name", "proxy"), &[80]),
    role("dns-1", "node-1", PodPath::Connect, ("k8s-app", "kube-dns"), &[53]),
    role("curl", "node-1", PodPath::Connect, ("role", "client"), &[]),
    role("legacy", "node-1", PodPath::Packet, ("role", "client"), &[]),
];

/// Joins in the second act.
const LATE: Role = role("nginx-3", "node-3", PodPath::Connect, ("run", "my-nginx"), &[80, 443]);

/// Brings up everything but the agents.
pub(super) async fn assemble(progress: &Progress) -> Result<Stage> {
    progress.start("bringing up nodes, pods and clients", NODES.len() + PODS.len() + 2);
    let mut stage = Stage::new("demo")?;
    for name in NODES {
        stage.add_node(name, Serve::nothing()).await?;
        progress.step();
    }
    for pod in PODS {
        add(&mut stage, pod).await?;
        progress.step();
    }
    let outside = stage.add_client("outside", Serve::nothing()).await?;
    outside.route_via(BALANCER, &stage.node("node-1")?)?;
    outside.route_via(EXTERNAL_IP, &stage.node("node-2")?)?;
    progress.step();
    let database = stage.add_client("database", Serve::ports(&[9376])).await?;
    database.add_address(DATABASE)?;
    for node in stage.world.nodes() {
        node.route(DATABASE, database.ipv4().into())?;
    }
    progress.step();
    progress.end();
    Ok(stage)
}

/// One endpoint of my-nginx leaves, another one joins.
pub(super) async fn change(stage: &mut Stage) -> Result<()> {
    add(stage, &LATE).await?;
    stage.cluster.remove_pod("nginx-2");
    stage.cluster.publish()
}

async fn add(stage: &mut Stage, role: &Role) -> Result<()> {
    let node = stage.node(role.node)?;
    let namespace = if role.name == "dns-1" { "kube-system" } else { "" };
    let spec = PodSpec { namespace, labels: &[role.label], named_ports: &[("http-web-svc", 80)] };
    stage.add_pod(&node, role.name, role.path, &spec, Serve::ports(role.ports)).await
}
