//! From kube-proxy to Weir and back on nodes in service: flows are held open over every way and speak all the time.
//!
//! Reading order: [`both_ways`] and what it calls; `rules` (what kube-proxy writes), `held` (the flows), `steps` (the commands).

mod held;
mod rules;
mod steps;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures::future::{FutureExt, LocalBoxFuture};
use proxy_agent::takeover::{KernelFlow, kernel_flows};
use serde_json::json;
use tokio::time::sleep;

use super::small::{self, NODE_PORT};
use crate::{
    call::{Options, Proto},
    demo::stage::Stage,
    world::Node,
};
use held::{Held, exchanges, hold, hold_to_each, speaking};
use rules::Mode;

pub(super) use rules::has_iptables;

/// Held flows count for themselves, without locks.
type LocalTest = (&'static str, &'static str, fn() -> LocalBoxFuture<'static, Result<()>>);

pub(super) const TESTS: &[LocalTest] =
    &[("from_kube_proxy_and_back", "14, paths", || both_ways(Mode::Nftables).boxed_local())];
/// Where the programs of iptables are installed.
pub(super) const IPTABLES_TESTS: &[LocalTest] =
    &[("from_kube_proxy_with_iptables_and_back", "14, paths", || both_ways(Mode::Iptables).boxed_local())];

const SERVICE_IPS: [&str; 2] = ["10.96.0.1", "fd00:10:96::1"];
const VIPS: [&str; 2] = ["203.0.113.2", "2001:db8:6::2"];
const BACKENDS: [&str; 3] = ["web-1", "web-2", "web-3"];
const ARGS: &[&str] = &["--service-cluster-ip-range", "10.96.0.0/16,fd00:10:96::/112"];
/// Long enough for several exchanges of each flow.
const A_WHILE: Duration = Duration::from_millis(1200);
const UNCONNECTED: Options = Options {
    timeout_ms: 2000,
    source_ip: None,
    source_port: None,
    connected: false,
    mapped: false,
    size: 0,
    upload: 0,
};

async fn both_ways(mode: Mode) -> Result<()> {
    let stage = world(mode).await?;
    let nodes = stage.world.nodes();
    let before = open_all(&stage).await.context("under kube-proxy")?;
    all_are(&nodes, &before, By::KubeProxy)?;
    let silent = to_remote(&stage).await?;
    let mut agents = speaking("the agents start", &[&before], steps::start(&stage, &nodes)).await?;
    steps::keeps_its_port(&nodes[0], silent.local)?;
    let after = to_weir(mode, &stage, &nodes, &before).await?;
    nodes.iter().try_for_each(|node| mode.install(node, &endpoints(&stage)?))?;
    speaking("kube-proxy's rules come", &[&before, &after], pass(A_WHILE)).await?;
    steps::refuses_while_an_agent_runs(&nodes[0])?;
    for agent in agents.values_mut() {
        agent.terminate().await?;
    }
    back(&stage, &nodes, before, after).await?;
    speaking("a flow that was silent all the time", &[std::slice::from_ref(&silent)], pass(Duration::ZERO)).await
}

/// Agents run beside kube-proxy's rules; these go. Returns flows of Weir's.
async fn to_weir<'a>(mode: Mode, stage: &'a Stage, nodes: &[Node], before: &[Held<'a>]) -> Result<Vec<Held<'a>>> {
    let counted = steps::counts(mode, nodes)?;
    let after = speaking("new flows", &[before], open_all(stage)).await?;
    all_are(nodes, &after, By::Weir)?;
    ensure!(steps::counts(mode, nodes)? == counted, "kube-proxy's rules translated a new flow");
    steps::refuses_while_kube_proxy_runs(stage, &nodes[0])?;
    let remove = async { nodes.iter().try_for_each(|node| steps::remove_rules(mode, node)) };
    speaking("kube-proxy's rules go", &[before, &after], remove).await?;
    speaking("Weir alone", &[before, &after], pass(A_WHILE)).await?;
    let alone = speaking("new flows without rules", &[before, &after], open_all(stage)).await?;
    all_are(nodes, &alone, By::Weir)?;
    for flow in alone {
        flow.close().await?;
    }
    Ok(after)
}

/// The rules are there again and no agent runs: both nodes are drained, the second without patience.
async fn back<'a>(stage: &'a Stage, nodes: &[Node], mut before: Vec<Held<'a>>, mut after: Vec<Held<'a>>) -> Result<()> {
    let second = nodes[1].addresses();
    let mut through_second = split_off(&mut after, |flow| second.contains(&flow.to.ip())).into_iter();
    let cut = through_second.next().context("no flow through the second node")?;
    for flow in through_second {
        flow.close().await?;
    }
    speaking("the second node's time is up", &[&before, &after], steps::drain_in_vain(&nodes[1])).await?;
    cut.close().await?;

    speaking("a drain is given up", &[&before, &after], steps::give_up(stage, &nodes[0])).await?;
    let drain = steps::Drain::start(&nodes[0])?;
    speaking("the first node drains", &[&before, &after], pass(2 * A_WHILE)).await?;
    let back = speaking("new flows while it drains", &[&before, &after], open_all(stage)).await?;
    all_are(nodes, &back, By::KubeProxy)?;
    // What was translated packet by packet ends; datagrams pause until they are nobody's any more. Sockets that the hooks
    // translated, and what the kernel translates, go on.
    let mut datagrams = split_off(&mut before, |flow| flow.proto == Proto::Udp);
    for flow in split_off(&mut after, |flow| matches!(flow.from, "packet" | "client")) {
        flow.close().await?;
    }
    datagrams.extend(split_off(&mut after, |flow| flow.proto == Proto::Udp));
    ensure!(!after.is_empty() && !before.is_empty(), "nothing is left to speak");
    let lines = speaking("the last flows end", &[&before, &after, &back], drain.end()).await?;
    steps::ended_well(&nodes[0], &lines)?;
    speaking("kube-proxy alone", &[&before, &after, &back, &datagrams], pass(A_WHILE)).await?;
    steps::no_martians(nodes)?;
    let all = [&before, &after, &back, &datagrams];
    let (flows, spoken) = (all.map(Vec::len), all.map(|flows| exchanges(flows)));
    println!("{} flows held, {} exchanges, 0 lost", flows.iter().sum::<usize>(), spoken.iter().sum::<usize>());
    Ok(())
}

async fn pass(time: Duration) -> Result<()> {
    sleep(time).await;
    Ok(())
}

/// Two nodes under kube-proxy's rules, three endpoints, callers of every kind.
async fn world(mode: Mode) -> Result<Stage> {
    let mut stage = small::hosts().await?;
    small::add_web(&mut stage, "web-3", "node-1").await?;
    let node = stage.node("node-1")?;
    for vip in VIPS {
        let bits = if vip.contains(':') { 128 } else { 32 };
        stage.peer("client")?.host.route_via(&format!("{vip}/{bits}"), &node)?;
    }
    let ingress: Vec<_> = VIPS.iter().map(|ip| json!({"ip": ip})).collect();
    stage.cluster.put_service(small::service(|service| {
        service["spec"]["type"] = json!("LoadBalancer");
        service["status"] = json!({"loadBalancer": {"ingress": ingress}});
    }))?;
    stage.cluster.publish()?;
    for node in stage.world.nodes() {
        mode.install_foreign(&node)?;
        mode.install(&node, &endpoints(&stage)?)?;
    }
    Ok(stage)
}

fn endpoints(stage: &Stage) -> Result<Vec<[IpAddr; 2]>> {
    BACKENDS.iter().map(|name| Ok(stage.peer(name)?.host.addresses())).collect()
}

/// Who calls, and where: pods by both paths, the node itself, and a client at both nodes and at the VIP.
fn ways(stage: &Stage) -> Result<Vec<(&'static str, SocketAddr)>> {
    let (first, second) = (stage.node("node-1")?.addresses(), stage.node("node-2")?.addresses());
    let mut ways = Vec::new();
    for family in [0, 1] {
        let service = SocketAddr::new(SERVICE_IPS[family].parse()?, 80);
        ways.extend(["near", "packet", "node-1"].map(|from| (from, service)));
        ways.push(("client", SocketAddr::new(first[family], NODE_PORT)));
        ways.push(("client", SocketAddr::new(second[family], NODE_PORT)));
        ways.push(("client", SocketAddr::new(VIPS[family].parse()?, 80)));
    }
    Ok(ways)
}

/// Over each way: TCP to each endpoint, and datagrams from a connected and an unconnected socket.
async fn open_all(stage: &Stage) -> Result<Vec<Held<'_>>> {
    let mut flows = Vec::new();
    for (from, to) in ways(stage)? {
        flows.extend(hold_to_each(stage, from, to, BACKENDS.len()).await?);
        flows.push(hold(stage, from, Proto::Udp, to, Options::default()).await?);
        flows.push(hold(stage, from, Proto::Udp, to, UNCONNECTED).await?);
    }
    Ok(flows)
}

/// A flow that kube-proxy masqueraded, with a port that is one of Weir's.
async fn to_remote(stage: &Stage) -> Result<Held<'_>> {
    let to = SocketAddr::new(stage.node("node-1")?.addresses()[0], NODE_PORT);
    let mut flows = hold_to_each(stage, "client", to, BACKENDS.len()).await?;
    let at = flows.iter().position(|flow| flow.pod == "web-2").context("no flow to the other node")?;
    let remote = flows.swap_remove(at);
    for flow in flows {
        flow.close().await?;
    }
    Ok(remote)
}

fn split_off<'a>(flows: &mut Vec<Held<'a>>, wanted: impl Fn(&Held<'a>) -> bool) -> Vec<Held<'a>> {
    let (off, kept) = std::mem::take(flows).into_iter().partition(wanted);
    *flows = kept;
    off
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    KubeProxy,
    Weir,
}

/// The kernel's connection tracking says it: it translates kube-proxy's flows, and sees those of Weir between client and
/// endpoint.
fn all_are(nodes: &[Node], flows: &[Held<'_>], by: By) -> Result<()> {
    for node in nodes {
        let tracked = node.in_netns(kernel_flows)?.context("the kernel's connections")?;
        let second = |flow: &&Held<'_>| nodes[1].addresses().contains(&flow.to.ip());
        let here = flows.iter().filter(|flow| second(flow) == (node.name() == nodes[1].name()));
        for flow in here {
            let mine = |it: &&KernelFlow| is_of(it, flow);
            let translated = tracked.iter().filter(mine).any(|it| it.to == flow.to && it.is_translated());
            let direct = tracked.iter().filter(mine).any(|it| it.to.port() == 8080);
            let found = if translated { By::KubeProxy } else { By::Weir };
            ensure!(
                found == by && (translated || direct),
                "{} ({}) -> {} {:?} is not {by:?}'s: {:?}",
                flow.from,
                flow.local,
                flow.to,
                flow.proto,
                tracked.iter().filter(mine).collect::<Vec<_>>()
            );
        }
    }
    Ok(())
}

fn is_of(it: &KernelFlow, flow: &Held<'_>) -> bool {
    let protocol = if flow.proto == Proto::Tcp { 6 } else { 17 };
    let address = flow.local.ip().is_unspecified() || it.from.ip() == flow.local.ip();
    let family = it.to.is_ipv4() == flow.to.is_ipv4();
    it.protocol == protocol && it.from.port() == flow.local.port() && address && family
}
