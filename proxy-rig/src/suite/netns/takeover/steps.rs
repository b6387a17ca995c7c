//! The commands that docs/operations.md names for the way to Weir and back, and what each must say and do.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::task::JoinHandle;

use super::{ARGS, rules::Mode};
use crate::{
    demo::stage::Stage,
    world::{Agent, Node, weir_binary},
};

/// Exit code of a drain whose time was up.
const CUT: i32 = 4;

pub(super) async fn start(stage: &Stage, nodes: &[Node]) -> Result<BTreeMap<String, Agent>> {
    let manifests = stage.cluster.dir().display().to_string();
    let mut agents = BTreeMap::new();
    for node in nodes {
        let mut agent = node.start_agent(&[&["--manifests", &manifests], ARGS].concat())?;
        agent.wait_ready().await?;
        agents.insert(node.name().to_owned(), agent);
        // Exchanges of all flows while one node has changed.
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
    Ok(agents)
}

pub(super) fn counts(mode: Mode, nodes: &[Node]) -> Result<Vec<u64>> {
    nodes.iter().map(|node| mode.translated(node)).collect()
}

/// The source port by which the endpoint knows the flow of `client` is in Weir's table, although no packet of it came since.
pub(super) fn keeps_its_port(node: &Node, client: SocketAddr) -> Result<()> {
    let tracked = node.in_netns(proxy_agent::takeover::kernel_flows)?.context("the kernel's connections")?;
    let flow = tracked.iter().find(|flow| flow.from == client).context("the kernel does not know the flow")?;
    let rows = json(&node.weir("flows", &["--snat", "-o", "json"])?)?;
    let (source, backend) = (flow.answer_to.to_string(), flow.answer_from.to_string());
    let found = rows.as_array().into_iter().flatten().any(|row| row["source"] == source && row["backend"] == backend);
    ensure!(found, "{source} towards {backend} is not in SNAT: {rows}");
    Ok(())
}

pub(super) fn refuses_while_kube_proxy_runs(stage: &Stage, node: &Node) -> Result<()> {
    let program = stage.world.run_dir().join("kube-proxy");
    fs::copy("/bin/sleep", &program).context("a process of that name")?;
    let mut process = node.command(&program)?.arg("60").stdout(Stdio::null()).spawn()?;
    let refused = node.weir("cleanup", &["--kube-proxy"]);
    process.kill()?;
    process.wait()?;
    let refused = refused?;
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1) && message.contains("kube-proxy runs on this node"), "{message}");
    Ok(())
}

pub(super) fn remove_rules(mode: Mode, node: &Node) -> Result<()> {
    let before = node.run_program("nft", &["list", "ruleset"])?;
    let would = json(&node.weir("cleanup", &["--kube-proxy", "--dry-run", "-o", "json"])?)?;
    ensure!(node.run_program("nft", &["list", "ruleset"])?.len() == before.len(), "a dry run changed something");
    let removed = json(&node.weir("cleanup", &["--kube-proxy", "-o", "json"])?)?;
    ensure!(would["removed"] == removed["removed"] && would["dryRun"] == true, "dry run {would}, then {removed}");
    ensure!(removed["failed"] == Value::Array(vec![]), "{removed}");
    let names: Vec<&str> =
        removed["removed"].as_array().into_iter().flatten().filter_map(|item| item["name"].as_str()).collect();
    let expected: &[&str] = match mode {
        Mode::Nftables => &["ip kube-proxy", "ip6 kube-proxy"],
        Mode::Iptables => &["KUBE-SERVICES", "PREROUTING -> KUBE-SERVICES", "KUBE-PROXY-CANARY", "KUBE-FORWARD"],
    };
    ensure!(expected.iter().all(|name| names.contains(name)), "{names:?}");
    mode.only_foreign_is_left(node)?;
    // Nobody else has a rule that tracks connections.
    let tables = node.run_program("nft", &["list", "tables"])?;
    ensure!(tables.contains("table ip weir-handover") && tables.contains("table ip6 weir-handover"), "{tables}");
    // A second time finds nothing, and leaves these tables as long as there are such connections.
    let output = node.weir("cleanup", &["--host-root", "/", "--kube-proxy"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success() && text.contains("nothing of kube-proxy's was found"), "{output:?}");
    ensure!(text.contains("the kernel still translates"), "{text}");
    Ok(())
}

pub(super) fn refuses_while_an_agent_runs(node: &Node) -> Result<()> {
    let refused = node.weir("cleanup", &["--drain"])?;
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1) && message.contains("an agent is running"), "{refused:?}");
    Ok(())
}

/// A drain that is given little time cuts the one TCP connection that is left, and says so.
pub(super) async fn drain_in_vain(node: &Node) -> Result<()> {
    let mut command = node.command(weir_binary()?)?;
    command.arg("cleanup").arg("--pin-root").arg(node.pin_dir()).args(["--drain", "--timeout", "4s", "-o", "json"]);
    let output = tokio::process::Command::from(command).output().await?;
    ensure!(output.status.code() == Some(CUT), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    let last: Value = serde_json::from_str(text.lines().last().context("no line")?)?;
    ensure!(last["cut"]["flows"]["TCP"] == 1, "{text}");
    ensure!(String::from_utf8_lossy(&output.stderr).contains("flows were cut"), "{output:?}");
    ensure!(!node.pin_dir().exists(), "pins are left");
    Ok(())
}

/// A drain is ended while it waits. An agent takes everything up as it was, and ends again.
pub(super) async fn give_up(stage: &Stage, node: &Node) -> Result<()> {
    let frontends = async || -> Result<usize> {
        let rows = json(&node.weir("services", &["-o", "json"])?)?;
        Ok(rows.as_array().context("rows")?.len())
    };
    let before = frontends().await?;
    let drain = Drain::start(node)?;
    let mut looks = 0;
    while frontends().await? > 0 {
        looks += 1;
        ensure!(looks < 100, "{before} frontends were not given back");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    drain.0.abort();
    let mut agents = start(stage, std::slice::from_ref(node)).await?;
    ensure!(before > 0 && frontends().await? == before, "not all of {before} frontends are back");
    for agent in agents.values_mut() {
        agent.terminate().await?;
    }
    Ok(())
}

/// A patient drain under way.
pub(super) struct Drain(JoinHandle<std::io::Result<Output>>);

impl Drain {
    pub(super) fn start(node: &Node) -> Result<Self> {
        let mut command = node.command(weir_binary()?)?;
        command.arg("cleanup").arg("--pin-root").arg(node.pin_dir());
        command.args(["--host-root", "/", "--drain", "--timeout", "10m", "--udp-idle", "2s"]);
        let child = tokio::process::Command::from(command).kill_on_drop(true).output();
        Ok(Self(tokio::spawn(child)))
    }

    /// What it printed.
    pub(super) async fn end(self) -> Result<String> {
        let output = self.0.await??;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr));
        Ok(text)
    }
}

/// The drain told what it waited for, and nothing of Weir's is left.
pub(super) fn ended_well(node: &Node, text: &str) -> Result<()> {
    ensure!(text.contains("frontends given back"), "{text}");
    let progress = text.lines().filter(|line| line.contains(" s: ")).count();
    ensure!(progress >= 2 && text.contains("TCP") && text.contains("UDP"), "{text}");
    let last = text.lines().last().unwrap_or_default();
    ensure!(last.starts_with("cut: 0 translated flows; sockets translated at connect: TCP"), "{text}");
    ensure!(!node.pin_dir().exists(), "pins are left");
    let tables = node.run_program("nft", &["list", "tables"])?;
    ensure!(!tables.contains("weir"), "{tables}");
    Ok(())
}

/// No packet was dropped for the way it came.
pub(super) fn no_martians(nodes: &[Node]) -> Result<()> {
    for node in nodes {
        let text = node.run_program("cat", &["/proc/net/netstat"])?;
        let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
        let (names, values) = (lines.next().context("netstat")?, lines.next().context("netstat")?);
        let found =
            names.split_whitespace().zip(values.split_whitespace()).find(|(name, _)| *name == "IPReversePathFilter");
        ensure!(found.is_none_or(|(_, count)| count == "0"), "{}: {found:?}", node.name());
    }
    Ok(())
}

fn json(output: &Output) -> Result<Value> {
    ensure!(output.status.success(), "{output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}
