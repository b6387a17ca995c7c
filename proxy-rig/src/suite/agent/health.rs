//! Health over HTTP, as a load balancer, the kubelet and Prometheus see it.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::control::{CLUSTER_IP, Control, service};
use crate::{apiserver::Config, world::Host};

pub(super) const HEALTHZ: u16 = 10256;
pub(super) const METRICS: u16 = 10249;
const CHECK_PORT: u16 = 32100;
/// A change of an object has reached the answers.
const SOON: Duration = Duration::from_secs(3);
const TIMEOUT: Duration = Duration::from_secs(2);

/// An answer to GET.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: u16,
    head: String,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("{self:?}"))
    }

    fn header(&self, name: &str) -> Option<&str> {
        let value = |line: &'_ str| {
            line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|it| it.0.len() + 2)
        };
        self.head.lines().find_map(|line| value(line).map(|start| line[start..].trim()))
    }
}

/// On a connection of its own.
pub(super) fn get(from: &Host, to: SocketAddr, path: &str) -> Result<Answer> {
    let ask = || -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = from.in_netns(ask)?.with_context(|| format!("GET http://{to}{path}"))?;
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| text.clone())?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).with_context(|| head.to_owned())?;
    Ok(Answer { code, head: head.to_owned(), body: body.to_owned() })
}

pub(super) fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// Asks until the answer is as wanted.
pub(super) async fn until(
    control: &Control,
    port: u16,
    path: &str,
    wanted: impl Fn(&Answer) -> bool,
) -> Result<Answer> {
    let started = tokio::time::Instant::now();
    loop {
        let answer = get(&control.node, local(port), path);
        match answer {
            Ok(answer) if wanted(&answer) => return Ok(answer),
            answer => ensure!(started.elapsed() < SOON, "{path} on port {port}: {answer:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn load_balancer(check_port: u16) -> Value {
    let mut object = service("web", "10.96.0.1", super::control::NODE_PORT);
    object["spec"]["type"] = json!("LoadBalancer");
    object["spec"]["externalTrafficPolicy"] = json!("Local");
    object["spec"]["healthCheckNodePort"] = json!(check_port);
    object
}

pub(super) async fn node_health() -> Result<()> {
    let (mut control, _agent) = Control::start(Config::default()).await?;
    let from_outside = SocketAddr::from((control.node.ipv4(), HEALTHZ));
    let answer = get(&control.stage.peer("client")?.host, from_outside, "/healthz")?;
    let body = answer.json()?;
    ensure!(answer.code == 200 && body["nodeEligible"] == true && body["healthy"] == true, "{answer:?}");
    ensure!(answer.header("content-type") == Some("application/json"), "{answer:?}");
    ensure!(answer.header("x-content-type-options") == Some("nosniff"), "{answer:?}");
    ensure!(body["status"]["IPv4"]["healthy"] == true && body["lastUpdated"] == body["currentTime"], "{answer:?}");
    control.stage.cluster.change_node("node-1", |node| {
        node["spec"]["taints"] = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    })?;
    control.sync()?;
    let answer = until(&control, HEALTHZ, "/healthz", |answer| answer.code == 503).await?;
    ensure!(answer.json()?["nodeEligible"] == false, "{answer:?}");
    let answer = get(&control.node, local(HEALTHZ), "/livez")?;
    ensure!(answer.code == 200 && answer.json()?.get("nodeEligible").is_none(), "{answer:?}");
    control.stage.cluster.change_node("node-1", |node| node["spec"]["taints"] = json!([]))?;
    control.sync()?;
    until(&control, HEALTHZ, "/healthz", |answer| answer.code == 200).await?;

    let answer = get(&control.node, local(METRICS), "/metrics")?;
    ensure!(answer.header("content-type").is_some_and(|it| it.starts_with("text/plain; version=0.0.4")), "{answer:?}");
    for line in ["kubeproxy_proxy_livez_total{code=\"200\"} 1\n", "# TYPE kubeproxy_proxy_livez_total counter\n"] {
        ensure!(answer.body.contains(line), "{line:?} is not in {}", answer.body);
    }
    ensure!(!answer.body.contains("kubeproxy_proxy_healthz_total{code=\"503\"} 0"), "{}", answer.body);
    ensure!(get(&control.node, local(METRICS), "/proxyMode")?.body == "ebpf");
    let refused =
        get(&control.stage.peer("client")?.host, SocketAddr::from((control.node.ipv4(), METRICS)), "/metrics");
    ensure!(refused.is_err(), "the metrics are served to all: {refused:?}");
    Ok(())
}

pub(super) async fn check_port() -> Result<()> {
    let (mut control, mut agent) = Control::start(Config::default()).await?;
    control.stage.cluster.put_service(load_balancer(CHECK_PORT))?;
    control.sync()?;
    let answer = until(&control, CHECK_PORT, "/", |answer| answer.code == 200).await?;
    let expected = json!({
        "service": {"namespace": "default", "name": "web"}, "localEndpoints": 2, "serviceProxyHealthy": true,
    });
    ensure!(answer.json()? == expected, "{answer:?}");
    ensure!(answer.header("x-load-balancing-endpoint-weight") == Some("2"), "{answer:?}");
    control.stage.cluster.change_pod("web-1", |pod| pod.ready = false)?;
    control.sync()?;
    until(&control, CHECK_PORT, "/any", |answer| answer.header("x-load-balancing-endpoint-weight") == Some("1"))
        .await?;
    control.stage.cluster.remove_pod("web-2");
    control.sync()?;
    let answer = until(&control, CHECK_PORT, "/", |answer| answer.code == 503).await?;
    ensure!(answer.json()?["localEndpoints"] == 0, "{answer:?}");
    ensure!(answer.header("x-load-balancing-endpoint-weight") == Some("0"), "{answer:?}");

    // A stranger has the next port: nothing else fails, and once he is gone the port is ours.
    let stranger = control.node.listen(([0, 0, 0, 0], CHECK_PORT + 1).into())?;
    control.stage.cluster.change_pod("web-1", |pod| pod.ready = true)?;
    control.stage.cluster.put_service(load_balancer(CHECK_PORT + 1))?;
    control.sync()?;
    agent.wait_for_line(SOON, |line| line.contains("WARN") && line.contains("no health check")).await?;
    closed(&control, CHECK_PORT).await?;
    control.served_by(&["web-1"], None).await?;
    ensure!(get(&control.node, local(HEALTHZ), "/livez")?.code == 200);
    drop(stranger);
    control.stage.cluster.put_service(load_balancer(CHECK_PORT + 2))?;
    control.sync()?;
    until(&control, CHECK_PORT + 2, "/", |answer| answer.code == 200).await?;
    control.stage.cluster.put_service(service("web", "10.96.0.1", super::control::NODE_PORT))?;
    control.sync()?;
    closed(&control, CHECK_PORT + 2).await?;
    ensure!(control.ask("near", CLUSTER_IP).await?.pod().is_some());
    Ok(())
}

async fn closed(control: &Control, port: u16) -> Result<()> {
    let started = tokio::time::Instant::now();
    while get(&control.node, local(port), "/").is_ok() {
        ensure!(started.elapsed() < SOON, "port {port} is open without its Service");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// One agent is replaced by the next as a rolling update does it, while somebody asks without a pause.
pub(super) async fn rolling() -> Result<()> {
    let (mut control, mut agent) = Control::start(Config::default()).await?;
    control.stage.cluster.put_service(load_balancer(CHECK_PORT))?;
    control.sync()?;
    until(&control, CHECK_PORT, "/", |answer| answer.code == 200).await?;
    let check = |control: &Control| -> Result<()> {
        for (port, path) in [(HEALTHZ, "/healthz"), (HEALTHZ, "/livez"), (CHECK_PORT, "/")] {
            let answer = get(&control.node, local(port), path)?;
            ensure!(answer.code == 200, "{path} on port {port}: {answer:?}");
            let weight = answer.header("x-load-balancing-endpoint-weight");
            ensure!(port != CHECK_PORT || weight == Some("2"), "{answer:?}");
        }
        Ok(())
    };
    for round in 0..3 {
        let mut next = control.agent()?;
        next.wait_for_line(SOON * 3, |line| line.contains("waiting as standby")).await?;
        for _ in 0..20 {
            check(&control).with_context(|| format!("round {round}, two agents"))?;
        }
        agent.signal(nix::sys::signal::Signal::SIGTERM)?;
        while agent.is_running()? {
            check(&control).with_context(|| format!("round {round}, while one ends"))?;
        }
        while !next.log_text().lines().any(crate::world::is_ready_line) {
            check(&control).with_context(|| format!("round {round}, while the next starts"))?;
        }
        check(&control)?;
        agent = next;
    }
    // What the standby says follows what the active agent hears.
    let mut standby = control.agent()?;
    standby.wait_for_line(SOON * 3, |line| line.contains("waiting as standby")).await?;
    control.stage.cluster.remove_pod("web-1");
    control.sync()?;
    let one = |answer: &Answer| answer.header("x-load-balancing-endpoint-weight") == Some("1");
    until(&control, CHECK_PORT, "/", one).await?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    for _ in 0..40 {
        let answer = get(&control.node, local(CHECK_PORT), "/")?;
        ensure!(one(&answer), "{answer:?}");
    }
    Ok(())
}
