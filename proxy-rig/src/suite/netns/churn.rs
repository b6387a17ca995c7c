//! Connections opened and closed as fast as the machine gives, one client, one frontend: none may wait, and none may leave
//! anything behind. In an LRU table that means: each entry left says that its connection is over, and source ports are free again.

mod load;
mod tables;

use std::{env, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use futures::future::FutureExt;

use super::{
    flows::OwnTest,
    small::{self, CLUSTER_IP, NODE_1, NODE_2},
};
use crate::{
    demo::{cluster::PodSpec, stage::Stage},
    world::{Host, PodPath, Serve},
};
use load::Load;
use proxy_common::abi::{Config, Reason};
use tables::Tables;

pub(super) const TESTS: &[OwnTest] = &[
    ("churn_to_a_local_backend", "churn", || local().boxed()),
    ("churn_to_a_remote_backend", "churn, SNAT", || remote().boxed()),
    ("more_connections_than_source_ports", "churn, SNAT", || beyond_the_ports().boxed()),
];

/// Seconds of the longest run, if not this many.
const SECONDS_VARIABLE: &str = "WEIR_CHURN_SECONDS";
const SECONDS: u64 = 60;
const SHORT: Duration = Duration::from_secs(10);
/// The bound for one connect.
const LONGEST: Duration = Duration::from_secs(1);

/// One backend, on node-1; callers have all ports.
async fn stage() -> Result<Stage> {
    let mut stage = Stage::new("churn")?;
    for name in ["node-1", "node-2"] {
        stage.add_node(name, Serve::nothing()).await?;
    }
    small::add_web(&mut stage, "web-1", "node-1").await?;
    let node = stage.node("node-1")?;
    stage.add_pod(&node, "packet", PodPath::Packet, &PodSpec::default(), Serve::nothing()).await?;
    stage.add_client("client", Serve::nothing()).await?;
    stage.cluster.put_service(small::service(|_| {}))?;
    stage.start_agents(&[]).await?;
    for name in ["packet", "client"] {
        let host = &stage.peer(name)?.host;
        host.sysctl("net/ipv4/ip_local_port_range", "1024 60999")?;
        // A port may be used again one second after its connection was closed.
        host.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
    }
    Ok(stage)
}

async fn local() -> Result<()> {
    let seconds = match env::var(SECONDS_VARIABLE) {
        Ok(text) => text.parse().context(SECONDS_VARIABLE)?,
        Err(_) => SECONDS,
    };
    let stage = stage().await?;
    churn(&stage, "packet", CLUSTER_IP, "node-1", Duration::from_secs(seconds)).await?;
    churn(&stage, "client", NODE_1, "node-1", SHORT).await
}

async fn remote() -> Result<()> {
    let stage = stage().await?;
    churn(&stage, "client", NODE_2, "node-2", SHORT).await
}

/// Calls `to` for a while; `node` translates.
async fn churn(stage: &Stage, from: &str, to: SocketAddr, node: &str, time: Duration) -> Result<()> {
    let tables = Tables::of(&stage.node(node)?);
    let before = tables.drops()?;
    let load = inside(&stage.peer(from)?.host, move || load::churn(to, time)).await?;
    println!("{from} -> {to}: {}", load.in_words());
    let Load { failures, longest, per_second, .. } = &load;
    ensure!(failures.is_empty(), "{from} -> {to}: {failures:?}");
    let drops = tables.drops_since(&before)?;
    ensure!(drops.is_empty(), "{from} -> {to}: {drops:?}");
    let left = tables.settled().await.with_context(|| format!("after {from} -> {to}"))?;
    println!("{from} -> {to}: left behind {left}");
    ensure!(*longest <= LONGEST, "{from} -> {to}: a connect took {longest:?}");
    ensure!(per_second.iter().all(|count| *count > 0), "{from} -> {to}: a second without one: {per_second:?}");
    ensure!(left.unanswered == 0, "{from} -> {to}: connections that were never answered: {left}");
    Ok(())
}

/// More connections at once than there are source ports.
async fn beyond_the_ports() -> Result<()> {
    const PORTS: usize = (Config::DEFAULT.snat_last - Config::DEFAULT.snat_first) as usize + 1;
    const CONNECTIONS: usize = PORTS * 5 / 4;
    let stage = stage().await?;
    let client = &stage.peer("client")?.host;
    let tables = Tables::of(&stage.node("node-2")?);
    let before = tables.drops()?;
    let open = inside(client, || load::hold(NODE_2, CONNECTIONS)).await?;
    println!("{} of {} connections at once over {PORTS} source ports", open.connected, CONNECTIONS);
    ensure!(open.connected <= PORTS, "{} connections over {PORTS} ports", open.connected);
    ensure!(open.connected >= PORTS * 9 / 10, "only {} of {PORTS} ports were used", open.connected);
    ensure!(open.timed_out == CONNECTIONS - open.connected, "some failed otherwise than by a drop: {open:?}");
    let drops = tables.drops_since(&before)?;
    let only_busy = drops.iter().all(|(reason, _)| *reason == Reason::SnatPortsBusy);
    ensure!(only_busy && !drops.is_empty(), "dropped: {drops:?}");
    let left = tables.settled().await?;
    println!("then left behind {left}");
    ensure!(left.unanswered <= open.timed_out, "more than those that were dropped: {left}");

    // All are closed: the ports are there again, for as many connections as have a good chance of one.
    let again = inside(client, || load::hold(NODE_2, PORTS / 2)).await?;
    ensure!(again.connected == PORTS / 2, "after the ports were free again: {again:?}");
    tables.settled().await.map(|_| ())
}

/// Runs in the host's namespace, but not in its cgroup: no socket hook sees the connections.
async fn inside<T: Send + 'static>(host: &Host, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let host = host.clone();
    tokio::task::spawn_blocking(move || host.in_netns(work)?).await?
}
