//! Datagrams that do not fit in a packet, in both directions, through every path.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use futures::future::FutureExt;

use super::{
    flows::OwnTest,
    small,
    sockets::{SharedTest, socket},
};
use crate::{
    call::{Options, Proto},
    demo::stage::Stage,
};

pub(super) const SHARED_TESTS: &[SharedTest] =
    &[("fragments_through_every_path", "parsing, 13, 18", |stage| every_path(stage).boxed())];

pub(super) const OWN_TESTS: &[OwnTest] =
    &[("fragments_of_the_nodes_own_packets", "parsing, paths", || own_packets().boxed())];

/// Two packets, and four, at an MTU of 1,500.
const SIZES: [usize; 2] = [2000, 5000];
/// Each path so often: one of two backends stays out of all of them in one run of 2^11.
const CALLS: usize = 12;

const WEB: [&str; 2] = ["10.96.0.1", "fd00:10:96::1"];
const ONE: [&str; 2] = ["10.96.0.2", "fd00:10:96::2"];
const ITSELF: [&str; 2] = ["10.96.0.8", "fd00:10:96::8"];
/// Of the Services `web` and `one`.
const WEB_PORT: u16 = 30080;
const ONE_PORT: u16 = 30082;

async fn every_path(stage: &Stage) -> Result<()> {
    for family in 0..2 {
        let node = |name: &str| -> Result<IpAddr> { Ok(stage.peer(name)?.host.addresses()[family]) };
        for from in ["near", "packet", "packet-2", "packet-3", "node-1", "node-3"] {
            ask(stage, from, socket(WEB[family], 80)?).await?;
            ask(stage, from, socket(ONE[family], 80)?).await?;
        }
        ask(stage, "self", socket(ITSELF[family], 80)?).await?;
        for name in ["node-1", "node-2", "node-3"] {
            ask(stage, "client", SocketAddr::new(node(name)?, WEB_PORT)).await?;
            ask(stage, "client", SocketAddr::new(node(name)?, ONE_PORT)).await?;
            ask(stage, "packet", SocketAddr::new(node(name)?, ONE_PORT)).await?;
        }
    }
    Ok(())
}

/// Without connect hooks the node's own packets are translated one by one.
async fn own_packets() -> Result<()> {
    let stage = small::start(&["--connect-hooks", "off"]).await?;
    for from in ["node-1", "node-2", "near", "packet"] {
        ask(&stage, from, small::CLUSTER_IP).await?;
        ask(&stage, from, socket(WEB[1], 80)?).await?;
    }
    Ok(())
}

async fn ask(stage: &Stage, from: &str, to: SocketAddr) -> Result<()> {
    for call in 0..CALLS {
        let options = Options { size: SIZES[call % SIZES.len()], ..Options::default() };
        let result = stage.ask(from, Proto::Udp, to, options).await?;
        result.answered().with_context(|| format!("{from} -> {to}, {} bytes of UDP", options.size))?;
        ensure!(result.peer == Some(to), "{from} -> {to}: the answer came from {:?}", result.peer);
    }
    Ok(())
}
