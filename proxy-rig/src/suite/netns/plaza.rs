//! The world that most end-to-end tests share: three nodes, of which node-3 has no backend, clients of
//! every kind, and the Services of `plaza.yaml`. It starts with the first test that needs it.

use std::sync::OnceLock;

use anyhow::{Result, anyhow};
use tokio::{runtime::Runtime, sync::OnceCell};

use super::setup::set_offloads;
use crate::{
    demo::{cluster::PodSpec, stage::Stage},
    world::{PodPath, Serve},
};

pub(super) const SERVICE_RANGES: &str = "10.96.0.0/16,fd00:10:96::/112";
const SERVICES: &str = include_str!("plaza.yaml");
/// Outside endpoint of the Service `outside`.
const FAR_AWAY: [&str; 2] = ["192.0.2.42/32", "2001:db8:42::42/128"];
/// External and load balancer addresses enter the cluster at these nodes.
const WAYS: [(&str, &str); 6] = [
    ("198.51.100.2/32", "node-1"),
    ("2001:db8:5::2/128", "node-2"),
    ("203.0.113.2/32", "node-2"),
    ("2001:db8:6::2/128", "node-1"),
    ("203.0.113.3/32", "node-1"),
    ("203.0.113.6/32", "node-1"),
];

/// Name, node, path, labels, ports.
type PodPlan = (&'static str, &'static str, PodPath, &'static [(&'static str, &'static str)], Serve);

/// Shared by the tests that change nothing. Dropped with the last of them, which removes the world.
#[derive(Default)]
pub(super) struct Plaza {
    /// Of all links, if they are not as the kernel makes them.
    offloads: Option<&'static str>,
    stage: OnceCell<Result<Stage, String>>,
    runtime: OnceLock<Runtime>,
}

impl Plaza {
    /// A world of its own in which every link has its checksum and segmentation offloads `on` or `off`.
    pub(super) fn with_offloads(state: &'static str) -> Self {
        Self { offloads: Some(state), ..Self::default() }
    }

    pub(super) fn run(&self, test: impl AsyncFnOnce(&Stage) -> Result<()>) -> Result<()> {
        let runtime = self.runtime.get_or_init(|| runtime().expect("invariant: the process may start threads"));
        runtime.block_on(async {
            let build = async || build(self.offloads).await.map_err(|error| format!("{error:#}"));
            let stage = self.stage.get_or_init(build).await;
            test(stage.as_ref().map_err(|error| anyhow!("the shared world: {error}"))?).await
        })
    }
}

pub(super) fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

async fn build(offloads: Option<&str>) -> Result<Stage> {
    let mut stage = Stage::new("netns-suite")?;
    for name in ["node-1", "node-2", "node-3"] {
        // node-2's own process is the backend of the Service `host`.
        let serve = if name == "node-2" { Serve::ports(&[9100]) } else { Serve::nothing() };
        stage.add_node(name, serve).await?;
    }
    let backend = || Serve::ports(&[8080, 8081]);
    let pods: [PodPlan; 9] = [
        ("web-1", "node-1", PodPath::Connect, &[("app", "web"), ("at", "one")], backend()),
        ("web-2", "node-2", PodPath::Packet, &[("app", "web"), ("at", "two")], backend()),
        ("self", "node-1", PodPath::Packet, &[("app", "self")], backend()),
        ("self-connect", "node-1", PodPath::Connect, &[("app", "self-connect")], backend()),
        ("leaving", "node-2", PodPath::Connect, &[("app", "leaving")], backend()),
        ("near", "node-1", PodPath::Connect, &[], Serve::nothing()),
        ("packet", "node-1", PodPath::Packet, &[], Serve::nothing()),
        ("packet-2", "node-2", PodPath::Packet, &[], Serve::nothing()),
        ("packet-3", "node-3", PodPath::Packet, &[], Serve::nothing()),
    ];
    for (name, node, path, labels, serve) in pods {
        let node = stage.node(node)?;
        stage.add_pod(&node, name, path, &PodSpec { labels, ..PodSpec::default() }, serve).await?;
    }
    stage.cluster.change_pod("leaving", |pod| pod.terminating = true)?;
    let client = stage.add_client("client", Serve::nothing()).await?;
    let stranger = stage.add_client("stranger", Serve::nothing()).await?;
    for (cidr, node) in WAYS {
        let node = stage.node(node)?;
        client.route_via(cidr, &node)?;
        stranger.route_via(cidr, &node)?;
    }
    let database = stage.add_client("database", backend()).await?;
    for cidr in FAR_AWAY {
        database.add_address(cidr)?;
        for node in stage.world.nodes() {
            let [v4, v6] = database.addresses();
            node.route(cidr, if cidr.contains(':') { v6 } else { v4 })?;
        }
    }
    stage.cluster.put_file("plaza.yaml", SERVICES)?;
    stage.start_agents(&["--service-cluster-ip-range", SERVICE_RANGES]).await?;
    if let Some(state) = offloads {
        set_offloads(&stage, state)?;
    }
    Ok(stage)
}
