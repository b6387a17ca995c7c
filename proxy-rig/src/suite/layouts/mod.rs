//! Node layouts of the common CNIs, with their filters: part of `weir-rig suite netns`. A test is a world of one
//! layout: the matrix of paths, the same behind a network policy and a masquerade rule, large transfers, and the
//! matrix once more without connect hooks.
//!
//! * `cast`: the hosts and Services that all layouts share; `matrix`: the paths.
//! * `filters`: nftables rules as CNIs write them.
//! * `foreign`: tc programs of others beside Weir's, which `observer` makes.
//! * `own_addresses`: a node that calls itself.
//! * `path_mtu`: narrow places on the way.
//! * `uplinks`, `attached`: two uplinks, and pods whose packets do not pass their node.

mod attached;
mod cast;
mod filters;
mod foreign;
mod matrix;
mod observer;
mod own_addresses;
mod path_mtu;
mod uplinks;

use anyhow::{Context, Result};
use futures::future::FutureExt;

use super::netns::{flows::OwnTest, setup::set_offloads, walk_all};
use crate::{
    call::{Options, Proto},
    demo::stage::Stage,
    world::{Layout, PodLinks},
};
use matrix::Addressing;

const ROUTED: Layout = Layout { pods: PodLinks::Routed, overlay: false, second_uplink: false };
const BRIDGED: Layout = Layout { pods: PodLinks::Bridged { netfilter: true }, ..ROUTED };
const UNFILTERED: Layout = Layout { pods: PodLinks::Bridged { netfilter: false }, ..ROUTED };

pub(super) const TESTS: &[OwnTest] = &[
    ("layout_routed_veth_behind_filters", "13, 15c", || everything(ROUTED).boxed()),
    ("layout_bridge_with_bridge_nf", "13, 15c", || everything(BRIDGED).boxed()),
    ("layout_bridge_without_bridge_nf", "13, 15c", || everything(UNFILTERED).boxed()),
    ("layout_routed_veth_over_vxlan", "13, 15c", || everything(Layout { overlay: true, ..ROUTED }).boxed()),
    ("layout_bridge_over_vxlan", "13, 15c", || everything(Layout { overlay: true, ..BRIDGED }).boxed()),
    ("layout_two_uplinks", "13, 19", || uplinks::test().boxed()),
    ("foreign_tc_programs", "13", || foreign::test().boxed()),
    ("layout_pods_beside_their_node", "13, 15c", || attached::test().boxed()),
    ("own_packets_over_vxlan", "paths", || own_packets().boxed()),
    ("own_packets_to_the_nodes_own_addresses", "13, 15b, paths", || own_addresses::test().boxed()),
    ("path_mtu_routed_veth", "icmp, paths", || path_mtu::test(ROUTED).boxed()),
    ("path_mtu_over_vxlan", "icmp, paths", || path_mtu::test(Layout { overlay: true, ..ROUTED }).boxed()),
];

async fn everything(layout: Layout) -> Result<()> {
    let mut stage = cast::assemble(layout).await?;
    stage.start_agents(cast::ARGS).await?;
    let addressing = Addressing::of(layout, true, layout.overlay);
    walk_all(&stage, &matrix::paths(&addressing)).await.context("plain")?;
    transfers(&stage, &matrix::TRANSFERS).await?;
    filters::install(&stage)?;
    let addressing = Addressing::of(layout, true, true);
    filters::check(&stage, layout, &addressing).await.context("behind filters")?;
    let args: Vec<&str> = cast::ARGS.iter().copied().chain(["--connect-hooks", "off"]).collect();
    stage.start_agents(&args).await?;
    let addressing = Addressing::of(layout, false, true);
    filters::check(&stage, layout, &addressing).await.context("without connect hooks")
}

/// Sockets of a node without connect hooks: routing to the VIP chose a link that takes longer packets than the overlay.
async fn own_packets() -> Result<()> {
    let mut stage = cast::assemble(Layout { overlay: true, ..ROUTED }).await?;
    // The endpoint is on the other node.
    stage.cluster.remove_pod("web-2");
    stage.start_agents(&[cast::ARGS, &["--connect-hooks", "off"]].concat()).await?;
    for to in [matrix::WEB4, matrix::WEB6] {
        let to = std::net::SocketAddr::new(to.parse()?, 80);
        for size in [1400, 1450, 1470, 3000] {
            datagram(&stage, "node-2", to, size).await?;
        }
        let options = Options { size: 1 << 20, upload: 40_000, timeout_ms: 10_000, ..Options::default() };
        stage.ask("node-2", Proto::Tcp, to, options).await?.answered().with_context(|| format!("node-2 -> {to}"))?;
    }
    Ok(())
}

/// Large answers, compared byte by byte by the caller, with offloads and without.
async fn transfers(stage: &Stage, ways: &[(&str, &str, u16)]) -> Result<()> {
    for state in ["off", "on"] {
        set_offloads(stage, state)?;
        for &(from, to, port) in ways {
            let ip = match to.parse() {
                Ok(ip) => ip,
                Err(_) => cast::address(stage, to)?,
            };
            let to = std::net::SocketAddr::new(ip, port);
            for _ in 0..3 {
                let options = Options { size: 2 << 20, timeout_ms: 10_000, ..Options::default() };
                let result = stage.ask(from, Proto::Tcp, to, options).await?;
                result.answered().with_context(|| format!("{from} -> {to}, offloads {state}"))?;
                // In fragments, which an overlay makes smaller ones of, or which its node refuses (IPv6).
                datagram(stage, from, to, 3000).await.with_context(|| format!("UDP, offloads {state}"))?;
            }
        }
    }
    Ok(())
}

/// A large datagram and its answer. The first ones may be lost to the discovery of a path's MTU.
async fn datagram(stage: &Stage, from: &str, to: std::net::SocketAddr, size: usize) -> Result<()> {
    const TRIES: u32 = 4;
    for _ in 1..TRIES {
        let options = Options { size, timeout_ms: 300, ..Options::default() };
        let result = stage.ask(from, Proto::Udp, to, options).await?;
        if result.pod().is_some() {
            return Ok(());
        }
    }
    let result = stage.ask(from, Proto::Udp, to, Options { size, ..Options::default() }).await?;
    result.answered().map(drop).with_context(|| format!("{from} -> {to}, {size} bytes"))
}
