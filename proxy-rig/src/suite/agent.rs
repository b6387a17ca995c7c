//! The agent as a process against the API server double: what it asks for, what it does with the answers,
//! and what the node's traffic sees of it. One function per test, each with a world of its own.

mod control;
mod faults;
mod health;
pub(super) mod image;
mod operations;
mod proof;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::future::{BoxFuture, FutureExt};
use libtest_mimic::{Failed, Trial};
use proxy_agent::{
    model::Snapshot,
    sources::kubernetes::{KubernetesConfig, connect, watch},
};
use serde_json::json;

use crate::{
    apiserver::{ApiServer, Config, GoneAs, Verb},
    call::Outcome,
};
use control::{AFTER_AN_OUTAGE, CLUSTER_IP, Control, NODE_PORT, service};

type Test = (&'static str, &'static str, fn() -> BoxFuture<'static, Result<()>>);

const TESTS: &[Test] = &[
    ("asks_for_what_it_needs_and_no_more", "1", || selectors().boxed()),
    ("follows_changes_of_every_kind", "1, 8", || changes().boxed()),
    ("slices_may_come_before_their_service", "3", || slices_first().boxed()),
    ("bookmarks_spare_a_new_list", "1", || bookmarks().boxed()),
    ("a_forgotten_version_is_listed_anew", "1", || gone().boxed()),
    ("broken_streams_lose_nothing", "1", || broken_streams().boxed()),
    ("a_server_without_watch_list_will_do", "1", || no_watch_list().boxed()),
    ("the_proxy_name_label_is_toggled_live", "1", || proxy_name_label().boxed()),
    ("the_nodes_address_moves", "19", || node_address().boxed()),
    ("serves_on_while_the_server_is_away", "14", || server_away().boxed()),
    ("starts_before_the_server_does", "1", || server_late().boxed()),
    ("nothing_is_deleted_before_all_has_been_listed", "1", || restart_without_server().boxed()),
    ("a_restart_with_the_same_objects_changes_no_map", "1", || restart().boxed()),
    ("sigterm_leaves_the_dataplane_working", "14", || sigterm().boxed()),
    ("service_ranges_follow_the_api", "12", || service_ranges().boxed()),
    ("host_ports_follow_the_api", "20", || host_ports().boxed()),
    ("a_malformed_object_stops_nobody", "bad-input", || malformed().boxed()),
    ("health_of_the_node_over_http", "21", || health::node_health().boxed()),
    ("verbose_health_proves_that_the_kernel_forwards", "21", || proof::forwarding().boxed()),
    ("health_check_ports_follow_their_services", "22", || health::check_port().boxed()),
    ("a_rolling_update_leaves_no_health_check_unanswered", "21, 22", || health::rolling().boxed()),
    ("events_tell_what_is_left_out", "bad-input", || faults::told_to_the_api().boxed()),
    ("lists_a_whole_cluster", "1", || whole_cluster().boxed()),
];

pub(super) fn tests() -> Result<Vec<Trial>> {
    Ok(TESTS
        .iter()
        .chain(faults::TESTS)
        .chain(operations::TESTS)
        .map(|&(name, rules, test)| trial(name, rules, test))
        .collect())
}

fn trial(name: &str, rules: &str, test: fn() -> BoxFuture<'static, Result<()>>) -> Trial {
    let run = move || -> Result<()> {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(test())
    };
    let trial = Trial::test(name, move || run().map_err(|error| Failed::from(format!("{error:#}"))));
    trial.with_kind(format!("rules {rules}")).with_ignored_flag(!super::is_root())
}

async fn selectors() -> Result<()> {
    let (control, _agent) = Control::start(Config::default()).await?;
    control.served_by(&["web-1", "web-2"], None).await?;
    let requests: Vec<_> = control.server.requests().iter().map(|line| line.replace("%2F", "/")).collect();
    for (resource, selector) in [
        ("services", "service.kubernetes.io/service-proxy-name"),
        ("endpointslices", "service.kubernetes.io/headless"),
        ("nodes", "metadata.name"),
        ("pods", "spec.nodeName"),
    ] {
        let about: Vec<_> = requests.iter().filter(|request| request.contains(&format!("/{resource}?"))).collect();
        ensure!(!about.is_empty(), "nothing was asked about {resource}: {requests:#?}");
        for request in about {
            ensure!(request.contains(selector), "{request} lacks {selector}");
            let watch = request.contains("watch=");
            ensure!(!watch || request.contains("allowWatchBookmarks=true"), "{request} asks for no bookmarks");
        }
    }
    // With --service-cluster-ip-range nobody asks for ranges.
    for resource in ["/servicecidrs", "/endpoints?", "/secrets", "/configmaps"] {
        ensure!(!requests.iter().any(|request| request.contains(resource)), "{resource} was asked for");
    }
    Ok(())
}

async fn changes() -> Result<()> {
    let (mut control, _agent) = Control::start(Config::default()).await?;
    control.stage.cluster.change_pod("web-2", |pod| pod.ready = false)?;
    control.sync()?;
    control.served_by(&["web-1"], None).await?;
    control.stage.cluster.remove_pod("web-1");
    control.stage.cluster.change_pod("web-2", |pod| pod.ready = true)?;
    control.sync()?;
    control.served_by(&["web-2"], None).await?;
    control.server.delete("Service", "default", "web")?;
    control.not_served().await?;
    control.server.apply_object(service("web", "10.96.0.1", NODE_PORT))?;
    control.served_by(&["web-2"], None).await
}

async fn slices_first() -> Result<()> {
    let (control, _agent) = Control::start(Config::default()).await?;
    let later = std::net::SocketAddr::from(([10, 96, 0, 2], 80));
    control.server.apply_object(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "later-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "later"}},
        "addressType": "IPv4", "ports": [{"name": "web", "protocol": "TCP", "port": 8080}],
        "endpoints": [{"addresses": [control.stage.peer("web-1")?.host.ipv4()], "nodeName": "node-1", "conditions": {}}],
    }))?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    control.server.apply_object(service("later", "10.96.0.2", 30082))?;
    let wanted = |result: &crate::call::CallResult| result.pod() == Some("web-1");
    control.stage.ask_until("near", crate::call::Proto::Tcp, later, Duration::from_secs(2), wanted).await?;
    Ok(())
}

async fn bookmarks() -> Result<()> {
    let config = Config { bookmark_interval: Duration::from_millis(100), ..Config::default() };
    let (mut control, _agent) = Control::start(config).await?;
    let lists = control.server.count("services", Verb::List);
    // Pods without a node are of no interest to the agent; they only move the version on.
    for number in 0..20 {
        let name = format!("other-{number}");
        control.server.apply_object(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}}))?;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    control.server.compact();
    control.server.faults().close_watches();
    control.stage.cluster.remove_pod("web-1");
    control.sync()?;
    control.served_by(&["web-2"], Some(AFTER_AN_OUTAGE)).await?;
    let now = control.server.count("services", Verb::List);
    ensure!(now == lists, "{} new lists in spite of bookmarks", now - lists);
    Ok(())
}

async fn gone() -> Result<()> {
    for form in [GoneAs::Event, GoneAs::HttpStatus] {
        let (mut control, _agent) = Control::start(Config::default()).await?;
        control.server.faults().gone_next_watch(form);
        control.server.faults().close_watches();
        // Happens while nobody watches, and is never told as an event.
        control.stage.cluster.remove_pod("web-2");
        control.sync()?;
        control.server.compact();
        control.served_by(&["web-1"], Some(AFTER_AN_OUTAGE)).await.with_context(|| format!("{form:?}"))?;
    }
    Ok(())
}

async fn broken_streams() -> Result<()> {
    let (mut control, _agent) = Control::start(Config::default()).await?;
    control.server.faults().truncate_chunk();
    control.stage.cluster.remove_pod("web-1");
    control.sync()?;
    control.served_by(&["web-2"], Some(AFTER_AN_OUTAGE)).await.context("after a broken chunk")?;
    control.until("watching again", |server| server.open_watches() >= 4).await?;
    control.server.faults().garbage();
    control.server.faults().close_watches();
    control.stage.cluster.change_pod("web-2", |pod| pod.ready = false)?;
    control.sync()?;
    let refused = |result: &crate::call::CallResult| result.outcome == Outcome::Refused;
    let proto = crate::call::Proto::Tcp;
    control.stage.ask_until("near", proto, CLUSTER_IP, AFTER_AN_OUTAGE, refused).await.context("after garbage")?;
    Ok(())
}

async fn no_watch_list() -> Result<()> {
    let (mut control, _agent) = Control::start(Config { watch_list: false, ..Config::default() }).await?;
    control.served_by(&["web-1", "web-2"], None).await?;
    control.stage.cluster.remove_pod("web-1");
    control.sync()?;
    control.served_by(&["web-2"], None).await
}

async fn proxy_name_label() -> Result<()> {
    let (control, _agent) = Control::start(Config::default()).await?;
    for _ in 0..2 {
        let mut foreign = service("web", "10.96.0.1", NODE_PORT);
        foreign["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "another"});
        control.server.apply_object(foreign)?;
        control.not_served().await?;
        control.server.apply_object(service("web", "10.96.0.1", NODE_PORT))?;
        control.served_by(&["web-1", "web-2"], None).await?;
    }
    Ok(())
}

async fn node_address() -> Result<()> {
    let (mut control, _agent) = Control::start(Config::default()).await?;
    let old = std::net::SocketAddr::from((control.node.ipv4(), NODE_PORT));
    let new = std::net::SocketAddr::from(([172, 18, 0, 61], NODE_PORT));
    control.node.add_address("172.18.0.61/24")?;
    ensure!(control.ask("client", old).await?.pod().is_some(), "the NodePort does not work at {old}");
    ensure!(control.ask("client", new).await?.pod().is_none(), "the NodePort works at {new} too early");
    control.stage.cluster.change_node("node-1", |node| {
        node["status"]["addresses"] = json!([{"type": "InternalIP", "address": "172.18.0.61"}]);
    })?;
    control.sync()?;
    let proto = crate::call::Proto::Tcp;
    let limit = Duration::from_secs(3);
    control.stage.ask_until("client", proto, new, limit, |result| result.pod().is_some()).await?;
    control.stage.ask_until("client", proto, old, limit, |result| result.pod().is_none()).await?;
    Ok(())
}

async fn server_away() -> Result<()> {
    let (mut control, mut agent) = Control::start(Config::default()).await?;
    control.server.stop();
    // A connection that was kept alive may bring one more watch while the server goes.
    let closed = |server: &ApiServer| {
        server.faults().close_watches();
        server.open_watches() == 0
    };
    control.until("no watch is open", closed).await?;
    control.stage.cluster.remove_pod("web-1");
    control.sync()?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    control.served_by(&["web-1", "web-2"], None).await.context("while the server is away")?;
    ensure!(agent.is_running()?, "the agent has ended: {}", agent.tail());
    control.serve_again()?;
    control.served_by(&["web-2"], Some(AFTER_AN_OUTAGE)).await.context("after the server's return")
}

async fn server_late() -> Result<()> {
    let mut control = Control::new(Config::default()).await?;
    control.server.stop();
    let mut agent = control.agent()?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure!(agent.is_running()?, "the agent does not wait for the server: {}", agent.tail());
    control.serve_again()?;
    agent.wait_ready().await?;
    control.served_by(&["web-1", "web-2"], None).await
}

async fn restart_without_server() -> Result<()> {
    let (mut control, mut agent) = Control::start(Config::default()).await?;
    let before = control.maps()?;
    agent.kill()?;
    control.server.stop();
    let mut agent = control.agent()?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(agent.is_running()?, "the agent does not wait for the server: {}", agent.tail());
    control.served_by(&["web-1", "web-2"], None).await.context("with an agent that has seen nothing yet")?;
    same_maps(&before, &control.maps()?)?;
    control.serve_again()?;
    agent.wait_ready().await?;
    same_maps(&before, &control.maps()?)
}

async fn restart() -> Result<()> {
    let (control, mut agent) = Control::start(Config::default()).await?;
    for number in 10..40 {
        control.server.apply_object(service(&format!("s-{number}"), &format!("10.96.0.{number}"), 30100 + number))?;
    }
    control.served_by(&["web-1", "web-2"], None).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = control.maps()?;
    for crash in [false, true] {
        if crash {
            agent.kill()?;
        } else {
            agent.terminate().await?;
        }
        agent = control.agent()?;
        agent.wait_ready().await?;
        same_maps(&before, &control.maps()?).with_context(|| format!("crash: {crash}"))?;
    }
    Ok(())
}

fn same_maps(before: &str, after: &str) -> Result<()> {
    if before == after {
        return Ok(());
    }
    let changed = before.lines().zip(after.lines()).find(|(before, after)| before != after);
    bail!(
        "the maps have changed, first here: {changed:?} ({} and {} lines)",
        before.lines().count(),
        after.lines().count()
    )
}

async fn sigterm() -> Result<()> {
    let (control, mut agent) = Control::start(Config::default()).await?;
    let near = control.stage.actor("near")?;
    let session = near.open(crate::call::Proto::Tcp, CLUSTER_IP.ip(), CLUSTER_IP.port()).await?;
    session.send().await?.answered()?;
    let status = agent.terminate().await?;
    ensure!(status.success(), "SIGTERM ended the agent with {status}");
    session.send().await?.answered().context("the open flow")?;
    control.served_by(&["web-1", "web-2"], None).await
}

async fn service_ranges() -> Result<()> {
    let control = Control::new(Config::default()).await?;
    let mut agent = control.agent_with(&[])?;
    agent.wait_ready().await?;
    let range = |cidr: &str| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
               "spec": {"cidrs": [cidr]}})
    };
    let known = |cidr: &'static str| control.until_map("SWITCHES", move |text| text.contains(cidr));
    control.server.apply_object(range("10.96.0.0/16"))?;
    known("10.96.0.0").await?;
    let nobodys = std::net::SocketAddr::from(([10, 96, 9, 9], 80));
    let result = control.ask("near", nobodys).await?;
    ensure!(result.outcome == Outcome::Unreachable, "{nobodys}: {:?}", result.outcome);
    control.served_by(&["web-1", "web-2"], None).await?;
    control.server.apply_object(range("10.112.0.0/16"))?;
    known("10.112.0.0").await?;
    control.server.delete("ServiceCIDR", "", "kubernetes")?;
    control.until_map("SWITCHES", |text| !text.contains("10.112.0.0")).await?;
    control.served_by(&["web-1", "web-2"], None).await
}

async fn host_ports() -> Result<()> {
    let (control, _agent) = Control::start(Config::default()).await?;
    let to = std::net::SocketAddr::from((control.node.ipv4(), 8088));
    let pod = |phase: &str| -> Result<serde_json::Value> {
        let address = control.stage.peer("web-1")?.host.ipv4();
        let ports = json!([{"containerPort": 8080, "hostPort": 8088}]);
        Ok(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "hosted", "namespace": "default"},
            "spec": {"nodeName": "node-1", "containers": [{"name": "c", "ports": ports}]},
            "status": {"phase": phase, "podIPs": [{"ip": address}]},
        }))
    };
    let proto = crate::call::Proto::Tcp;
    let limit = Duration::from_secs(2);
    for _ in 0..2 {
        control.server.apply_object(pod("Running")?)?;
        control.stage.ask_until("client", proto, to, limit, |result| result.pod() == Some("web-1")).await?;
        control.server.apply_object(pod("Failed")?)?;
        control.stage.ask_until("client", proto, to, limit, |result| result.outcome == Outcome::Refused).await?;
    }
    Ok(())
}

async fn malformed() -> Result<()> {
    let (control, mut agent) = Control::start(Config::default()).await?;
    let mut bad = service("bad", "10.96.0.300", 30090);
    control.server.apply_object(bad.clone())?;
    bad["metadata"]["name"] = json!("worse");
    bad["spec"]["ports"] = json!([{"port": "eighty"}]);
    control.server.apply_object(bad)?;
    control.server.apply_object(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "bad", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "endpoints": [{"addresses": ["here"]}, {"addresses": ["127.0.0.1"]}],
        "ports": [{"name": "web", "port": 8080}],
    }))?;
    agent.wait_for_line(Duration::from_secs(5), |line| line.contains("WARN") && line.contains("bad")).await?;
    control.served_by(&["web-1", "web-2"], None).await
}

/// Reads only. With KUBECONFIG set it reads that cluster, which is not to be changed, else the double.
async fn whole_cluster() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let own = directory.path().join("kubeconfig");
    let server = ApiServer::start_local(Config::default())?;
    server.write_kubeconfig(&own)?;
    for number in 1..=200 {
        server.apply_object(service(&format!("s-{number}"), &format!("10.96.1.{number}"), 30100 + number))?;
    }
    let given = std::env::var_os("KUBECONFIG").map(std::path::PathBuf::from);
    let kubeconfig = given.clone().unwrap_or(own);
    let config = KubernetesConfig { kubeconfig: Some(kubeconfig), ..KubernetesConfig::default() };
    let client = connect(&config).await?;
    let (sender, mut events) = tokio::sync::mpsc::channel(64);
    let watching = tokio::spawn(async move { watch(client, "node-1", &config.wanted, sender).await });
    let mut snapshot = Snapshot::new("node-1");
    while !snapshot.is_synced() {
        let event = tokio::time::timeout(AFTER_AN_OUTAGE, events.recv()).await.context("the lists do not end")?;
        snapshot.apply(event.context("the source has ended")?);
    }
    watching.abort();
    let count = snapshot.services().count();
    ensure!(given.is_some() || count == 200, "{count} Services instead of 200");
    ensure!(count > 0, "the cluster has not even the Service kubernetes");
    Ok(())
}
