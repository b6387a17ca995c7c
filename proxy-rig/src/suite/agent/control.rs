//! A node whose agent follows the API server double, and the objects that the double shows.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    apiserver::{ApiServer, Config},
    call::{CallResult, Options, Proto},
    demo::{cluster::PodSpec, stage::Stage},
    world::{Agent, Node, PodPath, Serve},
};

pub(super) const SERVICE_RANGES: &str = "10.96.0.0/16,fd00:10:96::/112";
pub(super) const CLUSTER_IP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)), 80);
pub(super) const NODE_PORT: u16 = 30080;
const API_PORT: u16 = 6443;
/// A change is on the wire and in the maps within this time.
const SOON: Duration = Duration::from_secs(2);
/// kube waits 0.8 s and more after a failure, doubling up to 30 s.
pub(super) const AFTER_AN_OUTAGE: Duration = Duration::from_secs(20);

/// The world of one test.
pub(super) struct Control {
    pub(super) server: ApiServer,
    pub(super) stage: Stage,
    pub(super) node: Node,
    /// Objects that the double has from us: kind, namespace, name.
    shown: BTreeSet<(String, String, String)>,
    kubeconfig: PathBuf,
}

pub(super) fn service(name: &str, cluster_ip: &str, node_port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "NodePort", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "selector": {"app": "web"},
            "ipFamilies": ["IPv4"], "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster",
            "ports": [{"name": "web", "protocol": "TCP", "port": 80, "targetPort": 8080, "nodePort": node_port}],
        },
    })
}

impl Control {
    /// Hosts and objects; the agent is the test's to start.
    pub(super) async fn new(config: Config) -> Result<Self> {
        let mut stage = Stage::new("agent-suite")?;
        let node = stage.add_node("node-1", Serve::nothing()).await?;
        let web = PodSpec { labels: &[("app", "web")], ..PodSpec::default() };
        for name in ["web-1", "web-2"] {
            stage.add_pod(&node, name, PodPath::Connect, &web, Serve::ports(&[8080])).await?;
        }
        stage.add_pod(&node, "near", PodPath::Connect, &PodSpec::default(), Serve::nothing()).await?;
        stage.add_pod(&node, "packet", PodPath::Packet, &PodSpec::default(), Serve::nothing()).await?;
        stage.add_client("client", Serve::nothing()).await?;
        stage.cluster.put_service(service("web", "10.96.0.1", NODE_PORT))?;
        let server = ApiServer::start(node.listen((Ipv4Addr::LOCALHOST, API_PORT).into())?, config)?;
        let kubeconfig = stage.world.run_dir().join("kubeconfig");
        server.write_kubeconfig(&kubeconfig)?;
        let mut control = Self { server, stage, node, shown: BTreeSet::new(), kubeconfig };
        control.sync()?;
        Ok(control)
    }

    /// The same with a running agent.
    pub(super) async fn start(config: Config) -> Result<(Self, Agent)> {
        let control = Self::new(config).await?;
        let mut agent = control.agent()?;
        agent.wait_ready().await?;
        Ok((control, agent))
    }

    pub(super) fn agent(&self) -> Result<Agent> {
        let kubeconfig = self.kubeconfig.display().to_string();
        self.node.start_agent(&["--kubeconfig", &kubeconfig, "--service-cluster-ip-range", SERVICE_RANGES])
    }

    /// Without the flags that the other tests give.
    pub(super) fn agent_with(&self, args: &[&str]) -> Result<Agent> {
        let kubeconfig = self.kubeconfig.display().to_string();
        let mut all = vec!["--kubeconfig", &kubeconfig];
        all.extend(args);
        self.node.start_agent(&all)
    }

    /// Waits until a map, as `weir maps dump` prints it, is as wanted.
    pub(super) async fn until_map(&self, map: &str, wanted: impl Fn(&str) -> bool) -> Result<()> {
        self.until_map_within(SOON, map, wanted).await
    }

    pub(super) async fn until_map_within(
        &self,
        limit: Duration,
        map: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let started = tokio::time::Instant::now();
        loop {
            let mut command = self.node.command(crate::world::weir_binary()?)?;
            let output = command.args(["maps", "dump", map]).arg("--pin-root").arg(self.node.pin_dir()).output()?;
            let text = String::from_utf8_lossy(&output.stdout);
            if wanted(&text) {
                return Ok(());
            }
            ensure!(started.elapsed() < limit, "{map}: {text}{}", String::from_utf8_lossy(&output.stderr));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The double shows the cluster as it is now. What has not changed makes no event.
    pub(super) fn sync(&mut self) -> Result<()> {
        let mut now = BTreeSet::new();
        for object in self.stage.cluster.objects() {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let metadata = &object["metadata"];
            now.insert((text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"])));
            self.server.apply_object(object)?;
        }
        for (kind, namespace, name) in self.shown.difference(&now) {
            self.server.delete(kind, namespace, name)?;
        }
        self.shown = now;
        Ok(())
    }

    /// The double comes back on the port it had.
    pub(super) fn serve_again(&mut self) -> Result<()> {
        let listener = self.node.listen((Ipv4Addr::LOCALHOST, API_PORT).into())?;
        self.server.serve(listener)
    }

    pub(super) async fn ask(&self, from: &str, to: SocketAddr) -> Result<CallResult> {
        let options = Options { timeout_ms: 500, ..Options::default() };
        self.stage.ask(from, Proto::Tcp, to, options).await
    }

    /// Each of these answers at the ClusterIP, at connect time and on the packet path, and nobody else does.
    pub(super) async fn served_by(&self, pods: &[&str], limit: Option<Duration>) -> Result<()> {
        let limit = limit.unwrap_or(SOON);
        for from in ["near", "packet"] {
            for pod in pods {
                let wanted = |result: &CallResult| result.pod() == Some(pod);
                let waited = self.stage.ask_until(from, Proto::Tcp, CLUSTER_IP, limit, wanted).await;
                waited.with_context(|| format!("waiting for {pod}"))?;
            }
            let mut row = 0;
            let started = tokio::time::Instant::now();
            while row < 20 {
                let result = self.ask(from, CLUSTER_IP).await?;
                row = if result.pod().is_some_and(|pod| pods.contains(&pod)) { row + 1 } else { 0 };
                ensure!(started.elapsed() < limit, "{from}: {:?} instead of one of {pods:?}", result.outcome);
            }
        }
        Ok(())
    }

    /// The ClusterIP is nobody's.
    pub(super) async fn not_served(&self) -> Result<()> {
        self.not_served_within(SOON).await
    }

    pub(super) async fn not_served_within(&self, limit: Duration) -> Result<()> {
        let wanted = |result: &CallResult| result.pod().is_none();
        self.stage.ask_until("near", Proto::Tcp, CLUSTER_IP, limit, wanted).await?;
        Ok(())
    }

    /// Waits for something that the double counts.
    pub(super) async fn until(&self, what: &str, seen: impl Fn(&ApiServer) -> bool) -> Result<()> {
        let started = tokio::time::Instant::now();
        while !seen(&self.server) {
            ensure!(started.elapsed() < AFTER_AN_OUTAGE, "{what}; requests so far: {:#?}", self.server.requests());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// The maps that the agent writes, as text.
    pub(super) fn maps(&self) -> Result<String> {
        let mut text = String::new();
        for map in ["ADDRS_V4", "SERVICES_V4", "SETS", "RINGS", "BACKENDS_V4", "PORT_NAMES", "IFACES"] {
            let output = self
                .node
                .command(crate::world::weir_binary()?)?
                .args(["maps", "dump", map])
                .arg("--pin-root")
                .arg(self.node.pin_dir())
                .output()?;
            ensure!(output.status.success(), "weir maps dump {map}: {}", String::from_utf8_lossy(&output.stderr));
            text += &format!("{map}\n{}\n", String::from_utf8_lossy(&output.stdout));
        }
        Ok(text)
    }
}
