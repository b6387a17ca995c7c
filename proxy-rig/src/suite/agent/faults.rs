//! An API server that lies, stalls and forgets: the agent serves the last good state meanwhile, and the true one afterwards.
//! Called by the agent suite. What the server does is in `apiserver/faults.rs`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    Test,
    control::{AFTER_AN_OUTAGE, Control, NODE_PORT, SERVICE_RANGES, service},
};
use crate::apiserver::{ApiServer, Config, GoneAs, ListBreak, Verb};

pub(super) const TESTS: &[Test] = &[
    ("a_dead_connection_is_noticed", "1", || Box::pin(dead_connection())),
    ("storms_of_refusals_are_met_with_patience", "1", || Box::pin(storms())),
    ("a_broken_list_deletes_nothing", "1", || Box::pin(broken_lists())),
    ("a_start_in_a_storm_is_only_later", "1", || Box::pin(start_in_a_storm())),
    ("an_event_that_was_not_readable_is_not_lost", "1", || Box::pin(garbled_event())),
    ("events_may_come_twice_and_out_of_order", "1", || Box::pin(replay())),
    ("a_server_may_go_back_in_time", "1", || Box::pin(restored())),
    ("a_list_of_fewer_objects_deletes_the_others", "1", || Box::pin(fewer_objects())),
];

/// Watches of Services, slices, the Node and Pods.
const WATCHES: usize = 4;

/// The open watches say nothing more, and nobody closes them.
async fn dead_connection() -> Result<()> {
    let mut control = Control::new(Config::default()).await?;
    let mut agent = control.agent_with(&["--service-cluster-ip-range", SERVICE_RANGES, "--watch-timeout", "2"])?;
    agent.wait_ready().await?;
    control.until("all watches are open", |server| server.open_watches() >= WATCHES).await?;
    control.server.faults().half_open();
    tokio::time::sleep(Duration::from_millis(100)).await;
    control.stage.cluster.remove_pod("web-1");
    control.sync()?;
    control.served_by(&["web-2"], Some(AFTER_AN_OUTAGE)).await?;
    ensure!(agent.log_text().contains("the connection is dead"), "nothing was noticed: {}", agent.tail());
    Ok(())
}

async fn storms() -> Result<()> {
    let (mut control, _agent) = Control::start(Config::default()).await?;
    control.server.faults().fail_next_with_pause(429, 1, 2 * WATCHES);
    control.server.faults().close_watches();
    control.stage.cluster.remove_pod("web-1");
    control.sync()?;
    let (from, started) = (control.server.requests_at().len(), Instant::now());
    control.served_by(&["web-2"], Some(AFTER_AN_OUTAGE)).await.context("after status 429")?;
    control.until("all watches are open", |server| server.open_watches() >= WATCHES).await?;
    let slices: Vec<Instant> = control.server.requests_at()[from..]
        .iter()
        .filter(|(_, line)| line.contains("/endpointslices?"))
        .map(|(at, _)| *at)
        .collect();
    for pair in slices.windows(2) {
        let gap = pair[1] - pair[0];
        ensure!(gap >= Duration::from_secs(1), "asked again after {gap:?}, in spite of Retry-After: 1");
    }
    println!("429 with Retry-After: 1: {} requests for slices in {:?}", slices.len(), started.elapsed());

    // Without that header the pauses grow by themselves.
    control.server.faults().fail_next(500, usize::MAX);
    control.server.faults().close_watches();
    control.until("no watch is open", |server| server.open_watches() == 0).await?;
    control.stage.cluster.change_pod("web-2", |pod| pod.ready = false)?;
    control.sync()?;
    let (from, started) = (control.server.requests().len(), Instant::now());
    tokio::time::sleep(Duration::from_secs(5)).await;
    control.served_by(&["web-2"], None).await.context("with status 500")?;
    control.server.faults().fail_next(500, 0);
    control.not_served_within(AFTER_AN_OUTAGE).await.context("after status 500")?;
    let (count, took) = (control.server.requests().len() - from, started.elapsed());
    println!("500: {count} requests in {took:?}");
    ensure!(count <= 8 * WATCHES, "{count} requests within {took:?}");
    Ok(())
}

async fn broken_lists() -> Result<()> {
    for form in [ListBreak::Garbage, ListBreak::Truncated] {
        let (mut control, mut agent) = Control::start(Config::default()).await?;
        control.server.faults().break_lists(form, 2);
        control.server.faults().gone_next_watch(GoneAs::Event);
        control.server.compact();
        control.server.faults().close_watches();
        let lists = |server: &ApiServer| {
            ["services", "endpointslices", "nodes", "pods"].iter().map(|it| server.count(it, Verb::List)).sum::<u64>()
        };
        let before = lists(&control.server);
        control.until("a list", |server| lists(server) > before).await?;
        control.served_by(&["web-1", "web-2"], None).await.with_context(|| format!("{form:?}"))?;
        control.stage.cluster.remove_pod("web-1");
        control.sync()?;
        control.served_by(&["web-2"], Some(AFTER_AN_OUTAGE)).await.with_context(|| format!("{form:?}"))?;
        ensure!(agent.is_running()?, "the agent has ended: {}", agent.tail());
    }
    Ok(())
}

/// Refusals, garbage and broken lists, all before the first good list: the maps of an earlier agent serve meanwhile.
async fn start_in_a_storm() -> Result<()> {
    let (control, mut agent) = Control::start(Config::default()).await?;
    let before = control.maps()?;
    agent.kill()?;
    control.server.faults().fail_next(503, WATCHES);
    control.server.faults().break_lists(ListBreak::Truncated, WATCHES);
    let mut agent = control.agent()?;
    control.until("the refusals are over", |server| server.faults().failures_left() == 0).await?;
    control.served_by(&["web-1", "web-2"], None).await.context("before the first good list")?;
    agent.wait_ready().await?;
    ensure!(before == control.maps()?, "the maps have changed");
    Ok(())
}

async fn garbled_event() -> Result<()> {
    let (mut control, _agent) = Control::start(Config::default()).await?;
    control.server.faults().garble_event("endpointslices");
    control.stage.cluster.remove_pod("web-1");
    control.sync()?;
    control.served_by(&["web-2"], Some(AFTER_AN_OUTAGE)).await
}

async fn replay() -> Result<()> {
    let (mut control, _agent) = Control::start(Config::default()).await?;
    // The last two events about the slices: without web-1, and with it again.
    control.stage.cluster.change_pod("web-1", |pod| pod.ready = false)?;
    control.sync()?;
    control.stage.cluster.change_pod("web-1", |pod| pod.ready = true)?;
    control.sync()?;
    control.served_by(&["web-1", "web-2"], None).await?;
    control.server.faults().replay();
    tokio::time::sleep(Duration::from_millis(200)).await;
    control.served_by(&["web-1", "web-2"], Some(AFTER_AN_OUTAGE)).await
}

/// A backup is played back: versions that the agent knows have never been, and come again with another meaning.
async fn restored() -> Result<()> {
    let config = Config { bookmark_interval: Duration::from_millis(200), ..Config::default() };
    let (mut control, _agent) = Control::start(config).await?;
    let then = control.server.resource_version();
    control.stage.cluster.remove_pod("web-1");
    control.sync()?;
    control.served_by(&["web-2"], None).await?;
    control.server.apply_object(service("later", "10.96.0.9", NODE_PORT + 1))?;
    control.server.restore(then)?;
    control.served_by(&["web-1", "web-2"], Some(AFTER_AN_OUTAGE)).await.context("as the backup says")?;
    control.until_map("SERVICES_V4", |text| !text.contains("10.96.0.9")).await
}

async fn fewer_objects() -> Result<()> {
    let (control, _agent) = Control::start(Config::default()).await?;
    for number in 10..60 {
        control.server.apply_object(service(&format!("s-{number}"), &format!("10.96.0.{number}"), 30100 + number))?;
    }
    control.until_map("SERVICES_V4", |text| text.contains("10.96.0.59")).await?;
    for number in 10..60 {
        control.server.delete("Service", "default", &format!("s-{number}"))?;
    }
    // They happen while nobody watches, and are never told as events.
    control.server.compact();
    control.server.faults().gone_next_watch(GoneAs::HttpStatus);
    control.server.faults().close_watches();
    control.until_map_within(AFTER_AN_OUTAGE, "SERVICES_V4", |text| !text.contains("10.96.0.59")).await?;
    let text = control.maps()?;
    ensure!(!text.contains("default/s-"), "left over: {text}");
    control.served_by(&["web-1", "web-2"], None).await
}

/// The Events of an agent, and what is not allowed to fail because of them.
pub(super) async fn told_to_the_api() -> Result<()> {
    let (control, _agent) = Control::start(Config::default()).await?;
    // Younger than `web`, whose ClusterIP it asks for.
    let mut thief = service("thief", "10.96.0.9", NODE_PORT + 1);
    thief["spec"]["externalIPs"] = json!(["10.96.0.1"]);
    control.server.apply_object(thief)?;
    control.server.apply_object(service("bad", "10.96.0.300", NODE_PORT + 2))?;
    let mut wild = service("wild", "10.96.0.7", NODE_PORT + 3);
    wild["metadata"]["annotations"] = json!({"weir.dev/algorithm": "wild"});
    control.server.apply_object(wild)?;
    let found = |server: &ApiServer, name: &str, reason: &str, note: &str| {
        server.list("Event").is_ok_and(|events| {
            events.iter().any(|event| {
                event["regarding"]["name"] == name
                    && event["reason"] == reason
                    && event["reportingInstance"] == "node-1"
                    && event["note"].as_str().is_some_and(|text| text.contains(note))
            })
        })
    };
    control.until("a conflict", |server| found(server, "thief", "FrontendConflict", "10.96.0.1")).await?;
    control.until("a bad object", |server| found(server, "bad", "InvalidObject", "10.96.0.300")).await?;
    control.until("an unknown algorithm", |server| found(server, "wild", "UnknownAlgorithm", "wild")).await?;
    control.served_by(&["web-1", "web-2"], None).await
}
