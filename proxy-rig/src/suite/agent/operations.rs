//! The agent as an operator meets it: its log, its level, its ends and its memory. Called by the agent suite.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{
    Test,
    control::{Control, NODE_PORT, SERVICE_RANGES, service},
};
use crate::{
    apiserver::Config,
    world::{Agent, weir_binary},
};

pub(super) const TESTS: &[Test] = &[
    ("the_log_level_is_changed_live", "operations", || Box::pin(log_level())),
    ("a_flood_of_bad_objects_is_no_flood_of_lines", "operations", || Box::pin(flood_of_bad_objects())),
    ("ends_have_their_codes", "operations", || Box::pin(exit_codes())),
    ("memory_is_bounded_at_a_hundred_thousand_endpoints", "operations", || Box::pin(memory())),
];

/// From the signal to the end of the process.
const END_LIMIT: Duration = Duration::from_secs(1);
/// Resident memory with 5,000 Services of 20 endpoints, in KiB: all of it for an optimised build; without optimisation the pages of the
/// program itself are several times as many, and only the rest is held against a bound.
const MEMORY_LIMIT: u64 = 80 * 1024;
const ANONYMOUS_LIMIT: u64 = 72 * 1024;
/// Pages of files, in KiB, beyond which the build is not an optimised one.
const OPTIMISED: u64 = 24 * 1024;
const SERVICES: u32 = 5000;
const ENDPOINTS: u32 = 20;

/// Output of a `weir` command on the node, and its exit code.
fn weir(control: &Control, args: &[&str]) -> Result<(String, Option<i32>)> {
    let mut command = control.node.command(weir_binary()?)?;
    let output = command.args(args).arg("--pin-root").arg(control.node.pin_dir()).output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((String::from_utf8_lossy(&text).trim().to_owned(), output.status.code()))
}

async fn log_level() -> Result<()> {
    let control = Control::new(Config::default()).await?;
    let flags = ["--service-cluster-ip-range", SERVICE_RANGES, "--log-format", "json", "--log-level", "info"];
    let mut agent = control.agent_with(&flags)?;
    agent.wait_ready().await?;
    ensure!(!agent.log_text().contains("\"DEBUG\""), "debug lines at level info");
    // The socket belongs to the agent that has the lock.
    let started = Instant::now();
    while weir(&control, &["log-level"])?.1 != Some(0) && started.elapsed() < Duration::from_secs(5) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(weir(&control, &["log-level"])? == ("info".to_owned(), Some(0)));
    let (text, code) = weir(&control, &["log-level", "loud"])?;
    ensure!(code == Some(1) && text.contains("\"loud\""), "{text}");
    ensure!(weir(&control, &["log-level", "debug"])? == ("info -> debug".to_owned(), Some(0)));
    control.server.apply_object(service("more", "10.96.0.9", NODE_PORT + 1))?;
    agent.wait_for_line(Duration::from_secs(5), |line| line.contains("\"DEBUG\"")).await.context("level debug")?;
    weir(&control, &["log-level", "warn"])?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let lines = agent.log_text().lines().count();
    control.server.delete("Service", "default", "more")?;
    control.until_map("SERVICES_V4", |text| !text.contains("10.96.0.9")).await?;
    ensure!(agent.log_text().lines().count() == lines, "lines at level warn: {}", agent.tail());
    for line in agent.log_text().lines() {
        serde_json::from_str::<Value>(line).with_context(|| format!("not JSON: {line}"))?;
    }
    ensure!(agent.terminate().await?.success());
    let (text, code) = weir(&control, &["log-level"])?;
    ensure!(code == Some(1) && text.contains("no agent runs here"), "{text}");
    Ok(())
}

/// 600 Services that make no sense or ask for what another one has, each changed once more.
async fn flood_of_bad_objects() -> Result<()> {
    const BAD: u16 = 300;
    const LINES: usize = 200;
    let (control, agent) = Control::start(Config::default()).await?;
    for round in 0..2 {
        for number in 0..BAD {
            let mut bad = service(&format!("bad-{number}"), &format!("10.96.0.{}", 300 + round), NODE_PORT + 1);
            bad["metadata"]["annotations"] = json!({"round": round.to_string()});
            control.server.apply_object(bad)?;
            let mut taken =
                service(&format!("taken-{number}"), &format!("10.96.{}.{}", 1 + number / 250, 1 + number % 250), 0);
            taken["spec"]["externalIPs"] = json!(["10.96.0.1", format!("10.96.0.{round}")]);
            control.server.apply_object(taken)?;
        }
    }
    let last = |text: &str| text.contains("10.96.2.50");
    control.until_map_within(Duration::from_secs(60), "ADDRS_V4", last).await?;
    control.served_by(&["web-1", "web-2"], None).await?;
    let lines = agent.log_text().lines().count();
    let events = control.server.list("Event")?.len();
    println!("{} bad objects, {lines} lines of the log, {events} Events", 4 * BAD);
    ensure!(lines <= LINES, "{lines} lines: {}", agent.tail());
    ensure!(events <= 100, "{events} Events");
    Ok(())
}

async fn exit_codes() -> Result<()> {
    let (mut control, mut agent) = Control::start(Config::default()).await?;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        ended_in_time(&mut agent, signal).await?;
        control.served_by(&["web-1", "web-2"], None).await?;
        agent = control.agent()?;
        agent.wait_ready().await?;
    }
    // In the middle of work: what is written is complete, and the next agent finds nothing to repair.
    for number in 1..=1000u16 {
        let address = format!("10.96.{}.{}", 1 + number / 250, 1 + number % 250);
        control.server.apply_object(service(&format!("s-{number}"), &address, 0))?;
    }
    ended_in_time(&mut agent, Signal::SIGTERM).await.context("at work")?;
    // And while nobody answers.
    control.server.stop();
    let mut agent = control.agent()?;
    agent.wait_for_line(Duration::from_secs(30), |line| line.contains("kernel programs loaded")).await?;
    // Interfaces are attached then, and nothing is heard.
    tokio::time::sleep(Duration::from_secs(3)).await;
    ended_in_time(&mut agent, Signal::SIGTERM).await.context("without a server")?;
    control.serve_again()?;
    let mut agent = control.agent()?;
    agent.wait_ready().await?;
    let mut standby = control.agent()?;
    standby.wait_for_line(Duration::from_secs(30), |line| line.contains("standby")).await?;
    ended_in_time(&mut standby, Signal::SIGTERM).await.context("as standby")?;

    ensure!(weir(&control, &["agent", "--no-such-flag"])?.1 == Some(2), "wrong usage");
    ensure!(weir(&control, &["agent", "--log-level", "loud"])?.1 == Some(2), "a wrong level");
    ensure!(weir(&control, &["agent", "--config", "/nonexistent/config.yaml"])?.1 == Some(1), "a failure");
    agent.terminate().await?;
    ensure!(weir(&control, &["cleanup"])?.1 == Some(0), "cleanup");
    ensure!(weir(&control, &["services"])?.1 == Some(3), "nothing is loaded");
    Ok(())
}

async fn ended_in_time(agent: &mut Agent, signal: Signal) -> Result<()> {
    let started = Instant::now();
    agent.signal(signal)?;
    // SIGTERM once more does no harm to one that is ending.
    let status = loop {
        match agent.ended()? {
            Some(status) => break status,
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
        ensure!(started.elapsed() < 10 * END_LIMIT, "{signal} is ignored: {}", agent.tail());
    };
    let took = started.elapsed();
    println!("{signal}: ended after {took:?}");
    ensure!(status.code() == Some(0), "{signal}: {status}: {}", agent.tail());
    ensure!(took <= END_LIMIT, "{signal}: ended after {took:?}");
    Ok(())
}

fn memory_of(agent: &Agent, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let line = status.lines().find(|line| line.starts_with(field)).with_context(|| format!("no {field}"))?;
    line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).with_context(|| line.to_owned())
}

/// A slice as a cluster has it, with all that Weir has no use for.
fn full_slice(number: u32) -> Value {
    let endpoints: Vec<Value> = (0..ENDPOINTS)
        .map(|index| {
            let id = number * ENDPOINTS + index;
            let pod = format!("app-{number}-6c5d8f7b9-{index:05}");
            json!({
                "addresses": [format!("10.{}.{}.{}", 128 + (id >> 16), (id >> 8) & 255, id & 255)],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": format!("node-{}", id % 500), "zone": format!("zone-{}", id % 3),
                "targetRef": {"kind": "Pod", "namespace": "default", "name": pod,
                              "uid": format!("00000000-0000-4000-8000-{id:012}")},
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("app-{number}-abcde"), "namespace": "default", "generateName": format!("app-{number}-"),
            "labels": {"kubernetes.io/service-name": format!("app-{number}"), "app": format!("app-{number}"),
                       "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"},
            "managedFields": [{"manager": "kube-controller-manager", "operation": "Update", "apiVersion": "discovery.k8s.io/v1",
                               "fieldsType": "FieldsV1", "fieldsV1": {"f:endpoints": {}, "f:ports": {}, "f:addressType": {}}}],
        },
        "endpoints": endpoints,
        "ports": [{"name": "web", "protocol": "TCP", "port": 8080}],
    })
}

async fn memory() -> Result<()> {
    let (control, mut agent) = Control::start(Config::default()).await?;
    let small = memory_of(&agent, "VmRSS")?;
    agent.terminate().await?;
    for number in 0..SERVICES {
        let address = format!("10.96.{}.{}", 10 + number / 250, 1 + number % 250);
        control.server.apply_object(service(&format!("app-{number}"), &address, 0))?;
        control.server.apply_object(full_slice(number))?;
    }
    control.server.compact();
    let mut agent = control.agent()?;
    let started = Instant::now();
    agent.wait_ready().await?;
    let synced = started.elapsed();
    let at_once = memory_of(&agent, "VmRSS")?;
    // Not the whole 30 s if nothing has changed for five.
    let mut row = vec![at_once];
    while row.len() < 30
        && !(row.len() > 10 && row.iter().rev().take(5).all(|it| it.abs_diff(row[row.len() - 1]) < 256))
    {
        tokio::time::sleep(Duration::from_secs(1)).await;
        row.push(memory_of(&agent, "VmRSS")?);
    }
    let (resident, peak) = (row[row.len() - 1], memory_of(&agent, "VmHWM")?);
    println!(
        "one Service: VmRSS {small} KiB; {SERVICES} Services x {ENDPOINTS} endpoints: synced after {synced:?}, VmRSS {at_once} KiB then, {resident} KiB {} s later, \
         VmHWM {peak} KiB; RssAnon {} KiB, RssFile {} KiB, RssShmem {} KiB",
        row.len() - 1,
        memory_of(&agent, "RssAnon")?,
        memory_of(&agent, "RssFile")?,
        memory_of(&agent, "RssShmem")?,
    );
    let (anonymous, files) = (memory_of(&agent, "RssAnon")?, memory_of(&agent, "RssFile")?);
    ensure!(anonymous <= ANONYMOUS_LIMIT, "{anonymous} KiB of data are resident, more than {ANONYMOUS_LIMIT}");
    ensure!(files > OPTIMISED || resident <= MEMORY_LIMIT, "{resident} KiB are resident, more than {MEMORY_LIMIT}");
    Ok(())
}
