//! What becomes of UDP sockets whose endpoint left: a client that keeps one connected socket for ever, as resolvers do.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::future::{FutureExt, try_join_all};
use serde_json::json;

use super::{
    flows::OwnTest,
    small::{self, CLUSTER_IP},
    sockets::socket,
};
use crate::{
    call::{Options, Outcome, Proto},
    demo::{cluster::Cluster, stage::Stage},
    world::{Session, weir_binary},
};

pub(super) const TESTS: &[OwnTest] = &[
    ("connected_udp_sockets_of_an_endpoint_that_left_are_ended", "Choices", || endpoint_leaves().boxed()),
    ("connected_udp_sockets_of_a_service_that_changed_are_ended", "Choices", || service_changes().boxed()),
    ("connected_udp_sockets_are_steered_anew_if_they_are_not_ended", "Choices", || steered().boxed()),
    ("sockets_in_namespaces_that_are_not_found_are_steered_anew", "Choices", || not_found().boxed()),
];

/// The bound of the promise.
const WITHIN: Duration = Duration::from_secs(1);
const CLUSTER_IP_V6: &str = "fd00:10:96::1";
/// A pod that the connect hooks see, and the node itself.
const CLIENTS: [&str; 2] = ["near", "node-1"];

/// A connected UDP socket to the Service.
struct Resolver<'a> {
    name: String,
    session: Session<'a>,
    to: SocketAddr,
    options: Options,
}

/// Both clients, each with IPv4, IPv6 and an IPv4-mapped address. All sockets are connected to web-1.
async fn resolvers<'a>(stage: &'a Stage, clients: &[&str]) -> Result<Vec<Resolver<'a>>> {
    let v6 = socket(CLUSTER_IP_V6, 80)?;
    let mut resolvers = Vec::new();
    for client in clients {
        for (to, mapped) in [(CLUSTER_IP, false), (v6, false), (CLUSTER_IP, true)] {
            let options = Options { mapped, timeout_ms: 3000, ..Options::default() };
            let session = stage.actor(client)?.open_with(Proto::Udp, to, options).await?;
            let name = format!("{client} -> {to}{}", if mapped { " (mapped)" } else { "" });
            let resolver = Resolver { name, session, to, options };
            resolver.is_answered_by("web-1").await?;
            resolvers.push(resolver);
        }
    }
    Ok(resolvers)
}

impl Resolver<'_> {
    async fn is_answered_by(&self, pod: &str) -> Result<()> {
        let result = self.session.send_with(None, Options { timeout_ms: 300, ..self.options }).await?;
        ensure!(result.pod() == Some(pod), "{}: {:?}, expected {pod}", self.name, result.outcome);
        ensure!(result.peer == Some(self.to), "{}: the peer is {:?}", self.name, result.peer);
        Ok(())
    }

    /// Waits until the socket is ended. Returns when.
    async fn is_ended(&self) -> Result<Instant> {
        let result = self.session.wait(self.options).await?;
        ensure!(result.outcome == Outcome::Aborted, "{}: {:?}", self.name, result.outcome);
        Ok(Instant::now())
    }

    async fn connects_anew_to(&self, pod: &str) -> Result<()> {
        let result = self.session.reconnect(self.to, self.options).await?;
        ensure!(result.outcome == Outcome::Connected, "{}: connecting anew: {:?}", self.name, result.outcome);
        self.is_answered_by(pod).await
    }
}

/// Makes the change while all sockets wait, and says what took longest.
async fn all_are_ended(resolvers: &[Resolver<'_>], what: &str, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let changed = async {
        // The calls are on their way, or not: both are right, an error waits for its reader.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = Instant::now();
        change().map(|()| now)
    };
    let (ended, changed) = tokio::try_join!(try_join_all(resolvers.iter().map(Resolver::is_ended)), changed)?;
    let longest = ended.iter().map(|at| at.saturating_duration_since(changed)).max().unwrap_or_default();
    println!("{what}: {} sockets ended, the last after {} ms", resolvers.len(), longest.as_millis());
    ensure!(longest < WITHIN, "{what}: the last socket was ended after {longest:?}");
    Ok(())
}

/// Only web-1 is ready.
async fn one_backend(args: &[&str]) -> Result<Stage> {
    let mut stage = small::hosts().await?;
    stage.cluster.change_pod("web-2", |pod| pod.ready = false)?;
    stage.cluster.put_service(small::service(|_| {}))?;
    stage.start_agents(args).await?;
    Ok(stage)
}

/// web-2 takes the place of web-1.
fn exchange(cluster: &mut Cluster) -> Result<()> {
    cluster.change_pod("web-2", |pod| pod.ready = true)?;
    cluster.change_pod("web-1", |pod| pod.ready = false)?;
    cluster.publish()
}

/// Sockets that must not notice that web-1 left the Service: TCP, and those that are connected to the pod itself.
async fn bystanders(stage: &Stage) -> Result<Vec<(String, Session<'_>)>> {
    let mut sessions = Vec::new();
    for client in CLIENTS {
        let tcp = stage.actor(client)?.open(Proto::Tcp, CLUSTER_IP.ip(), CLUSTER_IP.port()).await?;
        sessions.push((format!("{client}: TCP to the Service"), tcp));
        for ip in stage.peer("web-1")?.host.addresses() {
            let direct = stage.actor(client)?.open(Proto::Udp, ip, 8080).await?;
            sessions.push((format!("{client}: UDP to {ip}"), direct));
        }
    }
    still_at_web_1(&sessions).await?;
    Ok(sessions)
}

async fn still_at_web_1(sessions: &[(String, Session<'_>)]) -> Result<()> {
    for (name, session) in sessions {
        let result = session.send().await?;
        ensure!(result.pod() == Some("web-1"), "{name}: {:?}", result.outcome);
    }
    Ok(())
}

async fn endpoint_leaves() -> Result<()> {
    let mut stage = one_backend(&[]).await?;
    let mut cluster = stage.take_cluster();
    let bystanders = bystanders(&stage).await?;
    let resolvers = resolvers(&stage, &CLIENTS).await?;
    let unconnected = Options { connected: false, ..Options::default() };
    let sender = stage.actor("near")?.open_with(Proto::Udp, CLUSTER_IP, unconnected).await?;
    let packets = stage.actor("packet")?.open(Proto::Udp, CLUSTER_IP.ip(), CLUSTER_IP.port()).await?;
    for session in [&sender, &packets] {
        ensure!(session.send().await?.pod() == Some("web-1"), "web-1 is the only endpoint");
    }

    all_are_ended(&resolvers, "endpoint left", || exchange(&mut cluster)).await?;
    for resolver in &resolvers {
        resolver.connects_anew_to("web-2").await?;
    }
    for session in [&sender, &packets] {
        let result = session.send().await?;
        ensure!(result.pod() == Some("web-2"), "the next send: {:?}", result.outcome);
    }
    // Twice: the endpoint that came and went is told from the one that serves.
    let back = || {
        cluster.change_pod("web-1", |pod| pod.ready = true)?;
        cluster.change_pod("web-2", |pod| pod.ready = false)?;
        cluster.publish()
    };
    all_are_ended(&resolvers, "endpoint exchanged back", back).await?;
    for resolver in &resolvers {
        resolver.connects_anew_to("web-1").await?;
    }
    still_at_web_1(&bystanders).await?;
    // Draining is no reason: it still serves.
    cluster.change_pod("web-1", |pod| pod.terminating = true)?;
    cluster.publish()?;
    tokio::time::sleep(Duration::from_millis(700)).await;
    for resolver in &resolvers {
        resolver.is_answered_by("web-1").await.context("a draining endpoint")?;
    }
    still_at_web_1(&bystanders).await?;
    let text = weir(&stage, &["status"])?;
    for word in ["endpoint left: ended with an error", "sock-ended"] {
        ensure!(text.contains(word), "weir status lacks {word:?}:\n{text}");
    }
    Ok(())
}

async fn service_changes() -> Result<()> {
    let mut stage = one_backend(&["--service-cluster-ip-range", super::plaza::SERVICE_RANGES]).await?;
    let mut cluster = stage.take_cluster();
    let bystanders = bystanders(&stage).await?;
    let resolvers = resolvers(&stage, &CLIENTS).await?;
    let port = || {
        let udp = |service: &mut serde_json::Value| service["spec"]["ports"][1]["targetPort"] = json!(8081);
        cluster.put_service(small::service(udp))?;
        cluster.publish()
    };
    all_are_ended(&resolvers, "target port changed", port).await?;
    cluster.put_service(small::service(|_| {}))?;
    cluster.publish()?;
    let wanted = |result: &crate::call::CallResult| result.pod().is_some();
    stage.ask_until("near", Proto::Udp, CLUSTER_IP, WITHIN, wanted).await?;
    for resolver in &resolvers {
        resolver.connects_anew_to("web-1").await?;
    }
    all_are_ended(&resolvers, "Service deleted", || cluster.remove_service("default", "web")).await?;
    still_at_web_1(&bystanders).await
}

async fn steered() -> Result<()> {
    let mut stage = one_backend(&["--destroy-sockets", "off"]).await?;
    let mut cluster = stage.take_cluster();
    let mut agents = stage.take_agents();
    let bystanders = bystanders(&stage).await?;
    let busy = resolvers(&stage, &CLIENTS).await?;
    let idle = resolvers(&stage, &CLIENTS).await?;
    let changed = Instant::now();
    exchange(&mut cluster)?;
    are_steered(&busy, changed).await?;
    still_at_web_1(&bystanders).await?;
    // An agent that starts anew leaves it at that.
    let before = vanished(&stage)?;
    ensure!(before.len() == 2, "one address of each family: {before:?}");
    let agent = agents.get_mut("node-1").context("the agent of node-1")?;
    agent.terminate().await?;
    let manifests = cluster.dir().display().to_string();
    let node = stage.node("node-1")?;
    *agent = node.start_agent(&["--manifests", &manifests, "--destroy-sockets", "off"])?;
    agent.wait_ready().await?;
    ensure!(vanished(&stage)? == before, "after a restart: {:?}, before: {before:?}", vanished(&stage)?);
    are_steered(&idle, Instant::now()).await?;
    still_at_web_1(&bystanders).await?;
    let text = weir(&stage, &["status"])?;
    ensure!(text.contains("steered anew (--destroy-sockets=off)"), "weir status:\n{text}");
    // A Service that is gone has nothing to steer to.
    cluster.remove_service("default", "web")?;
    let refused = Instant::now();
    for resolver in &busy {
        loop {
            let result = resolver.session.send_with(None, Options { timeout_ms: 100, ..resolver.options }).await?;
            if result.outcome == Outcome::Refused {
                break;
            }
            ensure!(refused.elapsed() < WITHIN, "{}: still {:?}", resolver.name, result.outcome);
        }
    }
    still_at_web_1(&bystanders).await
}

async fn not_found() -> Result<()> {
    let nowhere = ["--netns-dirs", "/nonexistent", "--host-proc", "/nonexistent"];
    let mut stage = one_backend(&nowhere).await?;
    let mut cluster = stage.take_cluster();
    let bystanders = bystanders(&stage).await?;
    let of_node = resolvers(&stage, &["node-1"]).await?;
    let of_pod = resolvers(&stage, &["near"]).await?;
    let changed = Instant::now();
    all_are_ended(&of_node, "endpoint left, pods not found", || exchange(&mut cluster)).await?;
    are_steered(&of_pod, changed).await?;
    for resolver in &of_node {
        resolver.connects_anew_to("web-2").await?;
    }
    let text = weir(&stage, &["status"])?;
    ensure!(text.contains("ended on the node itself"), "weir status:\n{text}");
    still_at_web_1(&bystanders).await
}

/// Each is answered by web-2 within the limit, from the address that it is connected to.
async fn are_steered(resolvers: &[Resolver<'_>], changed: Instant) -> Result<()> {
    for resolver in resolvers {
        while let Err(error) = resolver.is_answered_by("web-2").await {
            ensure!(changed.elapsed() < WITHIN, "{error:#}");
        }
    }
    println!("{} sockets steered anew after {} ms", resolvers.len(), changed.elapsed().as_millis());
    for resolver in resolvers {
        resolver.is_answered_by("web-2").await.context("once more")?;
    }
    Ok(())
}

/// Lines of ADDRS with such addresses.
fn vanished(stage: &Stage) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for map in ["ADDRS_V4", "ADDRS_V6"] {
        let text = weir(stage, &["maps", "dump", map])?;
        found.extend(text.lines().filter(|line| line.contains("flags: 16")).map(str::to_owned));
    }
    Ok(found)
}

/// What an inspection command on node-1 prints.
fn weir(stage: &Stage, args: &[&str]) -> Result<String> {
    let node = stage.node("node-1")?;
    let (program, pins) = (weir_binary()?.display().to_string(), node.pin_dir().display().to_string());
    node.run_program(&program, &[args, &["--pin-root", &pins]].concat())
}
