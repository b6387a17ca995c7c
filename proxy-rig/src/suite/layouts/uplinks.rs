//! Two uplinks on two networks with policy routing: pods leave by the first, what has an address of the second
//! network by the second, and each network drops packets with sources that are not its own. A request that came in by
//! the second uplink must be answered by the second.

use anyhow::Result;

use super::{ROUTED, cast, walk_all};
use crate::{
    demo::{
        paths::{
            Path,
            Source::{Kept, KeptOn},
            all, host,
        },
        stage::Stage,
    },
    suite::netns::paths::both,
    world::{Layout, Node},
};

/// The Service `web` at the load balancer addresses that enter by the second uplink of node-1.
const VIPS: [&str; 2] = ["203.0.113.3", "2001:db8:6::3"];
const NODE_PORTS: &str = "172.18.0.0/24,172.19.0.0/24,fd00:172:18::/64,fd00:172:19::/64";

pub(super) async fn test() -> Result<()> {
    let mut stage = cast::assemble(Layout { second_uplink: true, ..ROUTED }).await?;
    for node in stage.world.nodes() {
        guard(&stage, &node)?;
    }
    let node = stage.node("node-1")?;
    for vip in ["203.0.113.2/32", "2001:db8:6::2/128"] {
        stage.world.route(vip, &node, false)?;
    }
    for vip in VIPS {
        stage.world.route(vip, &node, true)?;
        node.use_second_uplink(vip.parse()?)?;
    }
    stage.add_far_client("far").await?;
    let args = ["--nodeport-addresses", NODE_PORTS, "--uplink-interfaces", "eth1"];
    stage.start_agents(&cast::ARGS.iter().copied().chain(args).collect::<Vec<_>>()).await?;
    walk_all(&stage, &paths()).await?;
    let by_second = [("far", "172.19.0.11", 30080), ("far", "fd00:172:19::12", 30080), ("far", VIPS[1], 80)];
    super::transfers(&stage, &by_second).await
}

/// The networks take only their own sources.
fn guard(stage: &Stage, node: &Node) -> Result<()> {
    let [v4, v6] = node.addresses().map(|ip| ip.to_string());
    let (pods4, pods6) = ("10.244.0.0/16", "fd00:10:244::/48");
    stage.world.accept_sources(node, false, &[&v4, pods4, "203.0.113.2"], &[&v6, pods6, "2001:db8:6::2"])?;
    let [v4, v6] = node.second_addresses()?.map(|ip| ip.to_string());
    stage.world.accept_sources(node, true, &[&v4, VIPS[0]], &[&v6, VIPS[1]])
}

fn paths() -> Vec<Path> {
    let web = |node| all("default/web", 8080, KeptOn(node));
    let local = |pod| host(pod, 8080, Kept);
    [
        both("first uplink", "far", "node-1", "node-1/6", 30080, web("node-1")),
        both("second uplink", "far", "172.19.0.11", "fd00:172:19::11", 30080, web("node-1")),
        both("second uplink", "far", "172.19.0.12", "fd00:172:19::12", 30080, web("node-2")),
        both("second uplink, Local", "far", "172.19.0.11", "fd00:172:19::11", 30083, local("web-1")),
        both("load balancer by the first", "far", "203.0.113.2", "2001:db8:6::2", 80, web("node-1")),
        both("load balancer by the second", "far", VIPS[0], VIPS[1], 80, local("web-1")),
        both("host backend by the second", "far", "172.19.0.11", "fd00:172:19::11", 30091, host("node-1", 9100, Kept)),
        both("packet path", "packet", "10.96.0.1", "fd00:10:96::1", 80, all("default/web", 8080, Kept)),
        both("node", "node-1", "10.96.0.1", "fd00:10:96::1", 80, all("default/web", 8080, Kept)),
    ]
    .concat()
}
