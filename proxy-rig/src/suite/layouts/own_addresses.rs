//! Sockets of a node without connect hooks call what is on the node itself: an endpoint on its own address, and NodePorts on its own
//! address. Such packets pass no interface but lo.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};

use super::{ROUTED, cast, datagram};
use crate::{
    call::{Options, Outcome, Proto},
    demo::stage::Stage,
};

/// `services.yaml`: endpoints on both nodes; one on the address of node-1; none.
const WEB_NODE_PORT: u16 = 30080;
const HOST: [&str; 2] = ["10.96.0.11", "fd00:10:96::b"];
const HOST_NODE_PORT: u16 = 30091;
const EMPTY_NODE_PORT: u16 = 30092;
/// Often enough to meet each endpoint.
const CALLS: usize = 6;

pub(super) async fn test() -> Result<()> {
    let mut stage = cast::assemble(ROUTED).await?;
    stage.start_agents(&[cast::ARGS, &["--connect-hooks", "off"]].concat()).await?;
    for strict in ["0", "1"] {
        for node in stage.world.nodes() {
            node.sysctl("net/ipv4/conf/all/rp_filter", strict)?;
        }
        for name in ["node-1", "node-1/6", "node-2", "node-2/6"] {
            from_node(&stage, name).await.with_context(|| format!("{name}, rp_filter {strict}"))?;
        }
    }
    Ok(())
}

async fn from_node(stage: &Stage, name: &str) -> Result<()> {
    let own = cast::address(stage, name)?;
    let node = name.trim_end_matches("/6");
    let cluster_ip: IpAddr = HOST[usize::from(own.is_ipv6())].parse()?;
    for to in [(cluster_ip, 80), (own, HOST_NODE_PORT), (own, WEB_NODE_PORT)].map(SocketAddr::from) {
        for _ in 0..CALLS {
            let options = Options { size: 300_000, upload: 40_000, ..Options::default() };
            let result = stage.ask(node, Proto::Tcp, to, options).await?;
            let reply = result.answered().with_context(|| format!("TCP to {to}"))?;
            ensure!(reply.client.ip() == own, "TCP to {to}: the endpoint sees {}", reply.client);
            ensure!(result.peer == Some(to), "TCP to {to}: the peer is {:?}", result.peer);
            // The second is longer than the links of pods and between nodes, but not longer than lo takes.
            for size in [100, 3000] {
                datagram(stage, node, to, size).await.with_context(|| format!("UDP to {to}"))?;
            }
        }
    }
    for proto in [Proto::Tcp, Proto::Udp] {
        let result = stage.ask(node, proto, SocketAddr::new(own, EMPTY_NODE_PORT), Options::default()).await?;
        ensure!(result.outcome == Outcome::Refused, "{proto:?} without endpoints: {:?}", result.outcome);
    }
    Ok(())
}
