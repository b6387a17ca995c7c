//! Ways to run: connect hooks off, offloads off; and what is left after cleanup.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use futures::future::FutureExt;

use super::{flows::OwnTest, small};
use crate::{
    call::{Options, Proto},
    demo::stage::Stage,
    world::{Host, Node},
};

pub(super) const TESTS: &[OwnTest] = &[
    ("connect_hooks_off", "13", || hooks_off().boxed()),
    ("connect_hooks_of_the_host_only", "13", || hooks_of_the_host().boxed()),
    ("clsact_in_place_of_tcx", "13", || clsact().boxed()),
    ("bulk_with_offloads_off", "13", || bulk("off", &[]).boxed()),
    ("bulk_with_offloads_on", "13", || bulk("on", &[]).boxed()),
    ("bulk_of_the_nodes_own_packets_with_offloads_off", "13, paths", || bulk("off", HOOKS_OFF).boxed()),
    ("bulk_of_the_nodes_own_packets_with_offloads_on", "13, paths", || bulk("on", HOOKS_OFF).boxed()),
    ("cleanup_leaves_nothing", "Choices", || cleanup().boxed()),
    ("source_ports_are_reserved_and_given_back", "Choices", || source_ports().boxed()),
    ("the_world_goes_with_its_owner", "Choices", || world_goes().boxed()),
];

/// Features that decide which checksums a packet carries, and how large it is.
const OFFLOADS: [&str; 6] = ["tx", "rx", "tso", "gso", "gro", "tx-udp-segmentation"];
const HOOKS_OFF: &[&str] = &["--connect-hooks", "off"];

async fn hooks_off() -> Result<()> {
    let stage = small::start(HOOKS_OFF).await?;
    small::all_ways_work(&stage).await?;
    for from in ["node-1", "node-2", "near"] {
        for to in ["10.96.0.1", "fd00:10:96::1"] {
            for proto in [Proto::Tcp, Proto::Udp] {
                for _ in 0..8 {
                    let to = super::sockets::socket(to, 80)?;
                    let result = stage.ask(from, proto, to, Options::default()).await?;
                    let reply = result.answered().with_context(|| format!("{from} -> {to} {proto:?}"))?;
                    ensure!(reply.client.ip() == stage.address(from, to.ip())?, "{from} -> {to}: {reply:?}");
                    ensure!(result.peer == Some(to), "{from} -> {to} {proto:?}: peer {:?}", result.peer);
                }
            }
        }
    }
    Ok(())
}

async fn hooks_of_the_host() -> Result<()> {
    small::all_ways_work(&small::start(&["--connect-hooks", "host"]).await?).await
}

async fn clsact() -> Result<()> {
    small::all_ways_work(&small::start(&["--tc-attach", "clsact"]).await?).await
}

async fn bulk(offloads: &str, args: &[&str]) -> Result<()> {
    let stage = small::start(args).await?;
    set_offloads(&stage, offloads)?;
    for (from, to) in small::WAYS {
        for _ in 0..4 {
            let options = Options { size: 3 << 20, timeout_ms: 10_000, ..Options::default() };
            let result = stage.ask(from, Proto::Tcp, to, options).await?;
            result.answered().with_context(|| format!("{from} -> {to}, offloads {offloads}"))?;
            for size in [1400, 2000] {
                let options = Options { size, ..Options::default() };
                let result = stage.ask(from, Proto::Udp, to, options).await?;
                result.answered().with_context(|| format!("{from} -> {to}, {size} of UDP, offloads {offloads}"))?;
            }
        }
    }
    Ok(())
}

/// On every link of nodes, pods and clients, at both ends.
pub(in crate::suite) fn set_offloads(stage: &Stage, state: &str) -> Result<()> {
    let set = |host: &Host, link: &str| -> Result<()> {
        let mut command = host.command("ethtool")?;
        command.args(["-K", link]);
        for feature in OFFLOADS {
            command.args([feature, state]);
        }
        let output = command.output().context("running ethtool")?;
        ensure!(output.status.success(), "ethtool: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    for node in stage.world.nodes() {
        set(&node, "eth0")?;
        for pod in node.pods() {
            set(&node, pod.node_ifname())?;
            set(&pod, "eth0")?;
        }
    }
    stage.world.clients().iter().try_for_each(|client| set(client, "eth0"))
}

async fn cleanup() -> Result<()> {
    let mut stage = small::start(&[]).await?;
    small::all_ways_work(&stage).await?;
    let mut agents = stage.take_agents();
    for node in stage.world.nodes() {
        let before = attached(node.cgroup_path(), &node)?;
        let found = |what: &str| before.iter().any(|line| line.contains(what));
        ensure!(found("cgroup_inet4_connect") && found("tcx eth0"), "attached before cleanup: {before:?}");
        agents.get_mut(node.name()).context("no agent")?.terminate().await?;
        let output = node.weir("cleanup", &["--force"])?;
        ensure!(output.status.success(), "weir cleanup: {}", String::from_utf8_lossy(&output.stderr));
        let left = attached(node.cgroup_path(), &node)?;
        ensure!(left.is_empty(), "attached after cleanup on {}: {left:?}", node.name());
        let pins = files(node.pin_dir())?;
        ensure!(pins.is_empty(), "pinned after cleanup: {pins:?}");
        let again = node.weir("cleanup", &[])?;
        ensure!(again.status.success(), "a second cleanup: {}", String::from_utf8_lossy(&again.stderr));
    }
    let result = stage.ask("near", Proto::Tcp, small::CLUSTER_IP, Options::default()).await?;
    ensure!(result.pod().is_none(), "the Service still works: {:?}", result.outcome);
    let straight = stage.peer("web-2")?.host.ipv4();
    let result = stage.actor("near")?.http(straight, 8080).await?;
    ensure!(result.pod() == Some("web-2"), "straight traffic: {:?}", result.outcome);
    Ok(())
}

async fn source_ports() -> Result<()> {
    let mut stage = small::start(&["--snat-ports", "40000-40099"]).await?;
    let node = stage.node("node-1")?;
    let reserved = || node.run_program("cat", &["/proc/sys/net/ipv4/ip_local_reserved_ports"]);
    ensure!(reserved()?.trim() == "40000-40099", "reserved: {:?}", reserved()?);
    // Half of the calls go to the other node, from a port of the range.
    for _ in 0..16 {
        let result = stage.ask("client", Proto::Tcp, small::NODE_1, Options::default()).await?;
        let reply = result.answered()?;
        let kept = reply.client.ip() == stage.address("client", reply.client.ip())?;
        ensure!(kept || (40000..=40099).contains(&reply.client.port()), "{reply:?}");
    }
    let mut agents = stage.take_agents();
    agents.get_mut("node-1").context("no agent")?.terminate().await?;
    ensure!(reserved()?.trim() == "40000-40099", "the programs go on, the ports must stay theirs: {:?}", reserved()?);
    let output = node.weir("cleanup", &["--force"])?;
    ensure!(output.status.success(), "weir cleanup: {}", String::from_utf8_lossy(&output.stderr));
    ensure!(reserved()?.trim().is_empty(), "after cleanup: {:?}", reserved()?);
    Ok(())
}

async fn world_goes() -> Result<()> {
    let stage = small::start(&[]).await?;
    let id = stage.world.run_id().to_owned();
    small::all_ways_work(&stage).await?;
    stage.close()?;
    let left = crate::world::reap::leftovers(&id)?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

/// Programs at the node's cgroup and at its interfaces, one line each.
fn attached(cgroup: &Path, node: &Node) -> Result<Vec<String>> {
    let output = Command::new("bpftool").args(["cgroup", "show"]).arg(cgroup).output().context("running bpftool")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines: Vec<String> =
        text.lines().filter(|line| line.contains("cgroup_")).map(|line| line.trim().to_owned()).collect();
    let mut links = vec!["eth0".to_owned()];
    links.extend(node.pods().iter().map(|pod| pod.node_ifname().to_owned()));
    for link in links {
        for side in [TcAttachType::Ingress, TcAttachType::Egress] {
            let (_, programs) = node.in_netns(|| SchedClassifier::query_tcx(&link, side))?.context("asking for tcx")?;
            lines.extend(programs.iter().map(|program| format!("tcx {link} {}", program.name_as_str().unwrap_or("?"))));
        }
    }
    Ok(lines)
}

/// Files below a directory; none if it does not exist.
fn files(dir: &Path) -> Result<Vec<String>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else {
            found.push(entry.path().display().to_string());
        }
    }
    Ok(found)
}
