//! Open flows and changing objects: what goes on, what moves elsewhere, and how soon.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::{BoxFuture, FutureExt};
use serde_json::json;

use super::small::{self, CLUSTER_IP, NODE_1, NODE_2, WAYS};
use crate::{
    call::{CallResult, Options, Outcome, Proto},
    demo::{cluster::PodSpec, stage::Stage},
    world::Session,
};

pub(in crate::suite) type OwnTest = (&'static str, &'static str, fn() -> BoxFuture<'static, Result<()>>);

pub(super) const TESTS: &[OwnTest] = &[
    ("the_agent_may_end_crash_and_come_back", "14", || restarts().boxed()),
    ("an_endpoint_that_leaves_keeps_its_tcp_flows", "14, Choices", || endpoint_leaves().boxed()),
    ("a_new_endpoint_gets_traffic_at_once", "8", || endpoint_joins().boxed()),
    ("all_endpoints_leave_and_come_back", "11, Choices", || all_leave().boxed()),
    ("a_change_of_policy_leaves_flows_alone", "14, 15c", || policy_changes().boxed()),
    ("a_service_that_goes_is_gone", "1, 12", || service_goes().boxed()),
    ("the_proxy_name_label_is_toggled_live", "1", || label_toggles().boxed()),
];

/// Every change has to be visible within this time.
const SOON: Duration = Duration::from_secs(1);

/// One TCP flow over each way.
async fn open_all(stage: &Stage) -> Result<Vec<Session<'_>>> {
    let mut sessions = Vec::new();
    for (from, to) in WAYS {
        let session = stage.actor(from)?.open(Proto::Tcp, to.ip(), to.port()).await.with_context(|| from.to_owned())?;
        session.send().await?.answered().with_context(|| format!("{from} -> {to}"))?;
        sessions.push(session);
    }
    Ok(sessions)
}

async fn all_alive(sessions: &[Session<'_>], when: &str) -> Result<()> {
    for (session, (from, to)) in sessions.iter().zip(WAYS) {
        session.send().await?.answered().with_context(|| format!("the open flow {from} -> {to} {when}"))?;
    }
    Ok(())
}

async fn restarts() -> Result<()> {
    let mut stage = small::start(&[]).await?;
    let mut agents = stage.take_agents();
    let manifests = stage.cluster.dir().display().to_string();
    let sessions = open_all(&stage).await?;
    for crash in [false, true] {
        let how = if crash { "SIGKILL" } else { "SIGTERM" };
        for agent in agents.values_mut() {
            if crash {
                agent.kill()?;
            } else {
                agent.terminate().await?;
            }
        }
        // Nobody runs: everything goes on, new flows too.
        all_alive(&sessions, &format!("after {how}")).await?;
        small::all_ways_work(&stage).await.with_context(|| format!("after {how}"))?;
        for node in stage.world.nodes() {
            let mut agent = node.start_agent(&["--manifests", &manifests])?;
            agent.wait_ready().await?;
            agents.insert(node.name().to_owned(), agent);
        }
        all_alive(&sessions, &format!("after {how} and a restart")).await?;
        small::all_ways_work(&stage).await.with_context(|| format!("after {how} and a restart"))?;
    }
    Ok(())
}

/// Calls until `ROW` results in a row are as wanted; the first of them within the limit.
pub(super) async fn settles(
    stage: &Stage,
    from: &str,
    to: std::net::SocketAddr,
    wanted: impl Fn(&CallResult) -> bool,
) -> Result<()> {
    const ROW: usize = 12;
    let started = Instant::now();
    let mut good = 0;
    let options = Options { timeout_ms: 200, ..Options::default() };
    while good < ROW {
        let result = stage.ask(from, Proto::Tcp, to, options).await?;
        good = if wanted(&result) { good + 1 } else { 0 };
        ensure!(good > 0 || started.elapsed() < SOON, "{from} -> {to}: still {:?}", result.outcome);
    }
    Ok(())
}

async fn endpoint_leaves() -> Result<()> {
    let mut stage = small::start(&[]).await?;
    stage.cluster.remove_pod("web-2");
    stage.cluster.publish()?;
    for (from, to) in WAYS {
        settles(&stage, from, to, |result| result.pod() == Some("web-1")).await?;
    }
    // All flows now end at web-1, which leaves while they are open.
    let mut cluster = stage.take_cluster();
    let sessions = open_all(&stage).await?;
    let udp = stage.actor("packet")?.open(Proto::Udp, CLUSTER_IP.ip(), CLUSTER_IP.port()).await?;
    ensure!(udp.send().await?.pod() == Some("web-1"), "UDP did not reach web-1");
    let node = stage.node("node-2")?;
    let pod = node.pods().into_iter().find(|pod| pod.name() == "web-2").context("web-2")?;
    cluster.add_pod(&pod, &PodSpec { labels: &[("app", "web")], ..PodSpec::default() });
    cluster.remove_pod("web-1");
    cluster.publish()?;
    for (from, to) in WAYS {
        settles(&stage, from, to, |result| result.pod() == Some("web-2")).await?;
    }
    for (session, (from, to)) in sessions.iter().zip(WAYS) {
        let result = session.send().await?;
        ensure!(result.pod() == Some("web-1"), "the open flow {from} -> {to}: {:?}", result.outcome);
    }
    ensure!(udp.send().await?.pod() == Some("web-2"), "UDP sticks to the endpoint that left");
    Ok(())
}

async fn endpoint_joins() -> Result<()> {
    let mut stage = small::start(&[]).await?;
    // An interface that appears while the agent runs, and an endpoint behind it.
    small::add_web(&mut stage, "web-3", "node-2").await?;
    stage.cluster.publish()?;
    for (from, to) in WAYS {
        stage.ask_until(from, Proto::Tcp, to, SOON, |result| result.pod() == Some("web-3")).await?;
    }
    let result = stage.ask("web-3", Proto::Tcp, CLUSTER_IP, Options::default()).await?;
    result.answered().context("the new pod as a client")?;
    Ok(())
}

async fn all_leave() -> Result<()> {
    let mut stage = small::start(&[]).await?;
    for pod in ["web-1", "web-2"] {
        stage.cluster.change_pod(pod, |pod| pod.ready = false)?;
    }
    stage.cluster.publish()?;
    for (from, to) in WAYS {
        settles(&stage, from, to, |result| result.outcome == Outcome::Refused).await?;
        let udp = stage.ask(from, Proto::Udp, to, Options::default()).await?;
        ensure!(udp.outcome == Outcome::Refused, "{from} -> {to} UDP: {:?}", udp.outcome);
    }
    for pod in ["web-1", "web-2"] {
        stage.cluster.change_pod(pod, |pod| pod.ready = true)?;
    }
    stage.cluster.publish()?;
    for (from, to) in WAYS {
        settles(&stage, from, to, |result| result.pod().is_some()).await?;
    }
    small::all_ways_work(&stage).await
}

async fn policy_changes() -> Result<()> {
    let mut stage = small::start(&[]).await?;
    stage.cluster.remove_pod("web-2");
    stage.cluster.publish()?;
    settles(&stage, "client", NODE_2, |result| result.pod() == Some("web-1")).await?;
    let local = small::service(|service| service["spec"]["externalTrafficPolicy"] = json!("Local"));
    let mut cluster = stage.take_cluster();
    let open = stage.actor("client")?.open(Proto::Tcp, NODE_2.ip(), NODE_2.port()).await?;
    open.send().await?.answered()?;
    cluster.put_service(local)?;
    settles(&stage, "client", NODE_2, |result| result.outcome == Outcome::TimedOut).await?;
    let result = open.send().await?;
    ensure!(result.pod() == Some("web-1"), "the open flow: {:?}", result.outcome);
    let result = stage.ask("client", Proto::Tcp, NODE_1, Options::default()).await?;
    ensure!(result.pod() == Some("web-1"), "node-1, which has an endpoint: {:?}", result.outcome);
    Ok(())
}

async fn service_goes() -> Result<()> {
    let mut stage = small::start(&["--service-cluster-ip-range", super::plaza::SERVICE_RANGES]).await?;
    stage.cluster.remove_service("default", "web")?;
    settles(&stage, "packet", CLUSTER_IP, |result| result.outcome == Outcome::TimedOut).await?;
    settles(&stage, "near", CLUSTER_IP, |result| result.outcome == Outcome::Unreachable).await?;
    // Nobody listens there, and Weir no longer has an opinion.
    settles(&stage, "client", NODE_1, |result| result.outcome == Outcome::Refused).await?;
    stage.cluster.put_service(small::service(|_| {}))?;
    stage.cluster.publish()?;
    stage.ask_until("near", Proto::Tcp, CLUSTER_IP, SOON, |result| result.pod().is_some()).await?;
    Ok(())
}

async fn label_toggles() -> Result<()> {
    let mut stage = small::start(&[]).await?;
    let label = "service.kubernetes.io/service-proxy-name";
    let foreign = small::service(|service| service["metadata"]["labels"] = json!({label: "another"}));
    stage.cluster.put_service(foreign)?;
    settles(&stage, "client", NODE_1, |result| result.outcome == Outcome::Refused).await?;
    stage.cluster.put_service(small::service(|_| {}))?;
    stage.ask_until("client", Proto::Tcp, NODE_1, SOON, |result| result.pod().is_some()).await?;
    small::all_ways_work(&stage).await
}
