//! Sockets of a node that no connect hook sees (older than the hooks, raw, or with the hooks switched off), where the node's
//! own network is less simple than in the other tests.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use futures::future::FutureExt;

use super::{
    flows::{OwnTest, settles},
    small,
    sockets::socket,
};
use crate::{
    call::{Options, Proto},
    demo::stage::Stage,
};

pub(super) const OWN_TESTS: &[OwnTest] =
    &[("own_packets_behind_a_strict_rp_filter", "paths", || strict_sources().boxed())];

const WEB: [&str; 2] = ["10.96.0.1", "fd00:10:96::1"];

/// The answer's source is a VIP that no route leads to by the endpoint's link.
async fn strict_sources() -> Result<()> {
    let mut stage = small::hosts().await?;
    for node in stage.world.nodes() {
        node.sysctl("net/ipv4/conf/all/rp_filter", "1")?;
    }
    stage.cluster.put_service(small::service(|_| {}))?;
    stage.start_agents(&["--connect-hooks", "off"]).await?;
    small::all_ways_work(&stage).await?;
    called_by_all(&stage).await?;
    // The agents hear of a change.
    for value in ["0", "1"] {
        for node in stage.world.nodes() {
            node.sysctl("net/ipv4/conf/all/rp_filter", value)?;
        }
        settles(&stage, "node-1", socket(WEB[0], 80)?, |result| result.pod().is_some()).await?;
        called_by_all(&stage).await.with_context(|| format!("after a change to {value}"))?;
    }
    Ok(())
}

async fn called_by_all(stage: &Stage) -> Result<()> {
    for from in ["node-1", "node-2", "near"] {
        for ip in WEB {
            everything(stage, from, socket(ip, 80)?).await.with_context(|| from.to_owned())?;
        }
    }
    Ok(())
}

/// Large answers, datagrams in one packet and in several, often enough to meet both endpoints.
async fn everything(stage: &Stage, from: &str, to: SocketAddr) -> Result<()> {
    for _ in 0..8 {
        let options = Options { size: 300_000, ..Options::default() };
        stage.ask(from, Proto::Tcp, to, options).await?.answered().with_context(|| format!("TCP to {to}"))?;
        for size in [100, 2000] {
            let options = Options { size, ..Options::default() };
            let result = stage.ask(from, Proto::Udp, to, options).await?;
            result.answered().with_context(|| format!("UDP of {size} bytes to {to}"))?;
        }
    }
    Ok(())
}
