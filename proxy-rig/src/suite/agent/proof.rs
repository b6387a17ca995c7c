//! `/healthz?verbose` says 503 when the kernel does not forward as it should, and why; and what asking leaves behind.

use std::os::fd::AsFd as _;

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use proxy_agent::loader::{Pins, sys};
use proxy_common::{
    abi::{Service, ServiceKey, names},
    net::V4,
};
use serde_json::Value;

use super::{
    control::Control,
    health::{Answer, HEALTHZ, METRICS, get, local, until},
};
use crate::apiserver::Config;

const VERBOSE: &str = "/healthz?verbose";

pub(super) async fn forwarding() -> Result<()> {
    let (control, mut agent) = Control::start(Config::default()).await?;
    let answer = until(&control, HEALTHZ, VERBOSE, |answer| answer.code == 200).await?;
    let told = answer.json()?["forwarding"].clone();
    ensure!(told["healthy"] == true && told["programs"].as_u64() > Some(10), "{answer:?}");
    let probe = &told["probes"][0];
    ensure!(probe["frontend"] == "10.96.0.1:80" && probe["endpoint"].as_str().is_some(), "{answer:?}");
    leaves_nothing(&control)?;

    let pins = Pins::new(control.node.pin_dir());
    // A link goes.
    let links = std::fs::read_dir(pins.links())?.filter_map(Result::ok).map(|entry| entry.path());
    let path = links
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("tc_egress-")))
        .min()
        .context("no link of tc_egress is pinned")?;
    sys::link_detach(sys::obj_get(&path)?.as_fd())?;
    problem(&control, "tc_egress is not attached to interface").await?;
    ensure!(get(&control.node, local(HEALTHZ), "/healthz")?.code == 200, "/healthz without verbose proves nothing");
    agent.terminate().await?;
    let mut agent = control.agent()?;
    agent.wait_ready().await?;
    until(&control, HEALTHZ, VERBOSE, |answer| answer.code == 200).await?;

    // Another program takes the place of ours in the cgroup's link.
    let connect = sys::obj_get(&pins.link("connect4"))?;
    let other = sys::link_facts(sys::obj_get(&pins.link("sendmsg4"))?.as_fd())?.program;
    if sys::link_update(connect.as_fd(), proxy_agent::loader::programs::by_id(other)?.as_fd()).is_ok() {
        problem(&control, "connect4 is not attached to the cgroup").await?;
    } else {
        sys::link_detach(connect.as_fd())?;
        problem(&control, "connect4 is not attached to the cgroup").await?;
    }
    agent.terminate().await?;
    let mut agent = control.agent()?;
    agent.wait_ready().await?;
    until(&control, HEALTHZ, VERBOSE, |answer| answer.code == 200).await?;

    // A table loses what the agent wrote.
    let map = Map::from_map_data(MapData::from_pin(pins.map(names::SERVICES_V4))?)?;
    let mut services = HashMap::<_, ServiceKey<V4>, Service>::try_from(map)?;
    let keys: Vec<_> = services.keys().collect::<Result<_, _>>()?;
    for key in keys {
        services.remove(&key)?;
    }
    problem(&control, "a new TCP flow to 10.96.0.1:80 through").await?;
    leaves_nothing(&control)
}

async fn problem(control: &Control, wanted: &str) -> Result<()> {
    let named = |answer: &Answer| {
        let problems = answer.json().map(|body| body["forwarding"]["problems"].clone()).unwrap_or_default();
        let texts = problems.as_array().cloned().unwrap_or_default();
        answer.code == 503 && texts.iter().filter_map(Value::as_str).any(|text| text.contains(wanted))
    };
    until(control, HEALTHZ, VERBOSE, named).await.map(drop).with_context(|| format!("waiting for {wanted:?}"))
}

/// No table knows the address from which the agent asks, and the questions are counted by their own name.
fn leaves_nothing(control: &Control) -> Result<()> {
    for map in [names::NEW_FLOWS_V4, names::CONNTRACK_V4, names::NEW_SNAT_V4, names::AFFINITY] {
        let mut command = control.node.command(crate::world::weir_binary()?)?;
        let output = command.args(["maps", "dump", map, "--pin-root"]).arg(control.node.pin_dir()).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{map}: {}", String::from_utf8_lossy(&output.stderr));
        ensure!(!text.contains("192.0.0.8"), "{map}: {text}");
    }
    let metrics = get(&control.node, local(METRICS), "/metrics")?.body;
    let value = |name: &str| -> Result<f64> {
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .with_context(|| format!("{name} is not in {metrics}"))?;
        Ok(line.trim().parse()?)
    };
    ensure!(value("weir_passed_packets_total{reason=\"probe\"}")? >= 1.0, "the questions are not counted");
    ensure!(value("weir_packets_total{path=\"new-flow\"}")? == 0.0, "a question was counted as traffic");
    ensure!(value("weir_map_entries{map=\"SERVICES_V4\"}")? >= 2.0 && value("weir_services")? == 1.0, "{metrics}");
    ensure!(value("weir_map_capacity{map=\"CONNTRACK_V4\"}")? >= 1.0 && value("process_open_fds")? > 5.0, "{metrics}");
    ensure!(value("kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}")? >= 1.0, "{metrics}");
    Ok(())
}
