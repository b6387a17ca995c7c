//! Schedulers with real sockets: by every way, and by two nodes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::FutureExt;
use serde_json::{Value, json};

use super::{
    flows::OwnTest,
    small::{self, CLUSTER_IP, NODE_1, NODE_2},
    sockets::socket,
};
use crate::{
    call::{Options, Proto},
    demo::stage::Stage,
    world::Serve,
};

pub(super) const OWN_TESTS: &[OwnTest] = &[
    ("round_robin_by_every_way", "schedulers", || round_robin().boxed()),
    ("maglev_is_the_same_on_two_nodes", "schedulers", || two_nodes_agree().boxed()),
    ("least_connections_counts_sockets_and_packets", "schedulers", || connections_count().boxed()),
];

const CLUSTER_IP6: &str = "fd00:10:96::1";
/// The agent corrects the loads every three seconds.
const CORRECTED: Duration = Duration::from_secs(20);

async fn start(algorithm: &str) -> Result<Stage> {
    let mut stage = small::hosts().await?;
    stage.add_client("client-2", Serve::nothing()).await?;
    stage.cluster.put_service(small::service(|service| {
        service["metadata"]["annotations"] = json!({"weir.dev/algorithm": algorithm});
    }))?;
    stage.start_agents(&[]).await?;
    Ok(stage)
}

async fn pod(stage: &Stage, from: &str, to: std::net::SocketAddr) -> Result<String> {
    let result = stage.ask(from, Proto::Tcp, to, Options::default()).await?;
    let reply = result.answered().with_context(|| format!("{from} -> {to}"))?;
    Ok(reply.pod.clone())
}

/// All of these go through node-1: its cursor is one for sockets, pods' packets and those from outside.
async fn round_robin() -> Result<()> {
    let stage = start("rr").await?;
    let v6 = socket(CLUSTER_IP6, 80)?;
    for ways in [
        vec![("near", CLUSTER_IP), ("packet", CLUSTER_IP), ("node-1", CLUSTER_IP), ("client", NODE_1)],
        vec![("near", v6), ("packet", v6), ("node-1", v6)],
    ] {
        let mut last = None;
        for (from, to) in ways.iter().cycle().take(24) {
            let now = pod(&stage, from, *to).await?;
            ensure!(last.as_ref() != Some(&now), "{from} -> {to}: {now} twice, one after the other");
            last = Some(now);
        }
    }
    Ok(())
}

async fn two_nodes_agree() -> Result<()> {
    let stage = start("maglev").await?;
    let v6 = |node: &str| -> Result<_> {
        Ok(std::net::SocketAddr::new(stage.peer(node)?.host.ipv6().into(), small::NODE_PORT))
    };
    let v6 = [v6("node-1")?, v6("node-2")?];
    for client in ["client", "client-2"] {
        for [first, second] in [[NODE_1, NODE_2], v6] {
            let chosen = pod(&stage, client, first).await?;
            for to in [first, second].into_iter().cycle().take(12) {
                let now = pod(&stage, client, to).await?;
                ensure!(now == chosen, "{client}: {chosen} by {first}, {now} by {to}");
            }
        }
    }
    for from in ["near", "packet"] {
        let chosen = pod(&stage, from, CLUSTER_IP).await?;
        for _ in 0..12 {
            let now = pod(&stage, from, CLUSTER_IP).await?;
            ensure!(now == chosen, "{from} had {chosen} and now has {now}");
        }
    }
    Ok(())
}

async fn connections_count() -> Result<()> {
    let stage = start("lc").await?;
    let mut sessions = Vec::new();
    for (from, to) in [("near", CLUSTER_IP), ("packet", CLUSTER_IP), ("near", CLUSTER_IP), ("client", NODE_1)] {
        let session = stage.actor(from)?.open(Proto::Tcp, to.ip(), to.port()).await.with_context(|| from.to_owned())?;
        session.send().await?.answered().with_context(|| format!("{from} -> {to}"))?;
        sessions.push(session);
    }
    until_loads(&stage, &[2, 2]).await?;
    for session in sessions {
        session.close().await?;
    }
    until_loads(&stage, &[0, 0]).await
}

/// Of the TCP backends, by IPv4, as `weir backends` on node-1 says.
async fn until_loads(stage: &Stage, wanted: &[u64]) -> Result<()> {
    let started = Instant::now();
    loop {
        let output = stage.node("node-1")?.weir("backends", &["-o", "json"])?;
        ensure!(output.status.success(), "weir backends: {}", String::from_utf8_lossy(&output.stderr));
        let rows: Vec<Value> = serde_json::from_slice(&output.stdout).context("the output of weir backends")?;
        let tcp_v4 = |row: &&Value| {
            let text = |name: &str| row[name].as_str().unwrap_or_default();
            text("service").ends_with("/TCP") && !text("address").starts_with('[')
        };
        let loads: Vec<u64> = rows.iter().filter(tcp_v4).filter_map(|row| row["load"].as_u64()).collect();
        if loads == wanted {
            return Ok(());
        }
        ensure!(started.elapsed() < CORRECTED, "loads {loads:?}, expected {wanted:?}: {rows:?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}
