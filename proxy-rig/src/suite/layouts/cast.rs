//! The hosts and Services of a world that tests a node layout. Two nodes with a backend each; callers of every kind.

use std::net::IpAddr;

use anyhow::Result;

use crate::{
    demo::{cluster::PodSpec, stage::Stage},
    world::{Layout, PodPath, Serve},
};

pub(super) const ARGS: &[&str] = &["--service-cluster-ip-range", "10.96.0.0/16,fd00:10:96::/112"];
const SERVICES: &str = include_str!("services.yaml");

/// Load balancer addresses of `services.yaml` that enter at node-1.
const VIPS: [&str; 4] = ["203.0.113.2/32", "2001:db8:6::2/128", "203.0.113.3/32", "2001:db8:6::3/128"];

type PodPlan = (&'static str, &'static str, PodPath, &'static str);

const PODS: [PodPlan; 5] = [
    ("web-1", "node-1", PodPath::Connect, "web"),
    ("web-2", "node-2", PodPath::Packet, "web"),
    ("self", "node-1", PodPath::Packet, "self"),
    ("near", "node-1", PodPath::Connect, "near"),
    ("packet", "node-1", PodPath::Packet, "packet"),
];

/// Everything but the agents.
pub(super) async fn assemble(layout: Layout) -> Result<Stage> {
    let mut stage = Stage::with_layout("netns-layouts", layout)?;
    for name in ["node-1", "node-2"] {
        let node = stage.add_node(name, Serve::ports(&[9100])).await?;
        if layout.overlay {
            // The network between the nodes knows nothing of pods.
            let [v4, v6] = node.addresses().map(|ip| ip.to_string());
            stage.world.accept_sources(&node, false, &[&v4, "203.0.113.0/24"], &[&v6, "2001:db8:6::/64"])?;
            super::filters::masquerade(&node)?;
        }
    }
    for (name, node, path, app) in PODS {
        let node = stage.node(node)?;
        let spec = PodSpec { labels: &[("app", app)], ..PodSpec::default() };
        stage.add_pod(&node, name, path, &spec, Serve::ports(&[8080])).await?;
    }
    let node = stage.node("node-1")?;
    for name in ["client", "stranger"] {
        let client = stage.add_client(name, Serve::nothing()).await?;
        VIPS.iter().try_for_each(|vip| client.route_via(vip, &node))?;
    }
    stage.cluster.put_file("services.yaml", SERVICES)?;
    Ok(stage)
}

/// The address of a host; `/6` after the name asks for its IPv6 address.
pub(super) fn address(stage: &Stage, name: &str) -> Result<IpAddr> {
    let (name, place) = name.strip_suffix("/6").map_or((name, 0), |name| (name, 1));
    Ok(stage.peer(name)?.host.addresses()[place])
}
