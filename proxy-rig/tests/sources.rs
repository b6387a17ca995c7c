//! The agent's Kubernetes source against the API server double: what arrives, and what survives outages,
//! broken streams, forgotten versions and relistings. No root needed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{net::TcpListener, time::Duration};

use proxy_agent::{
    model::{Event, ServiceName, Snapshot},
    sources::kubernetes::{KubernetesConfig, connect, watch},
};
use proxy_rig::apiserver::{ApiServer, Config, GoneAs, Verb};
use tokio::{sync::mpsc, time};

/// Longer than kube's pauses between attempts at the start of an outage.
const LIMIT: Duration = Duration::from_secs(20);

fn service(name: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{clusterIP: {address}, ports: [{{port: 80}}]}}\n---\n"
    )
}

fn slice(name: &str, service: &str, address: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}, namespace: default, labels: {{kubernetes.io/service-name: {service}}}}}\n\
         addressType: IPv4\nendpoints: [{{addresses: [{address}], nodeName: node-a}}]\n\
         ports: [{{name: '', port: 8080}}]\n---\n"
    )
}

fn node(name: &str, zone: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: {zone}}}}}\n---\n"
    )
}

/// The snapshot that the agent would have, and the events that lead on.
struct Agent {
    snapshot: Snapshot,
    events: mpsc::Receiver<Event>,
    skips: usize,
}

impl Agent {
    async fn start(server: &ApiServer) -> Self {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("kubeconfig");
        server.write_kubeconfig(&path).unwrap();
        let config = KubernetesConfig { kubeconfig: Some(path), ..KubernetesConfig::default() };
        let client = connect(&config).await.unwrap();
        let (sender, events) = mpsc::channel(64);
        tokio::spawn(async move { watch(client, "node-a", &config.wanted, sender).await });
        Self { snapshot: Snapshot::new("node-a"), events, skips: 0 }
    }

    /// Takes over events until the snapshot's Services and endpoints are these.
    async fn becomes(&mut self, services: &[&str], endpoints: &[&str]) {
        let wanted = (texts(services), texts(endpoints));
        let end = time::Instant::now() + LIMIT;
        while !self.snapshot.is_synced() || self.state() != wanted {
            match time::timeout_at(end, self.events.recv()).await {
                Ok(Some(Event::Skipped(skips))) => self.skips += skips.len(),
                Ok(Some(event)) => {
                    self.snapshot.apply(event);
                }
                Ok(None) => panic!("the source has ended"),
                Err(_) => panic!("expected {wanted:?}, got {:?}", self.state()),
            }
        }
    }

    fn state(&self) -> (Vec<String>, Vec<String>) {
        let services = self.snapshot.services().map(|it| it.name.name.to_string()).collect();
        let endpoints = self.snapshot.slices().flat_map(|it| &it.endpoints).map(|it| it.address.to_string()).collect();
        (services, endpoints)
    }
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[tokio::test]
async fn only_what_is_to_be_programmed_arrives() {
    let server = ApiServer::start_local(Config::default()).unwrap();
    server.apply(&(service("web", "10.96.0.1") + &service("headless", "None"))).unwrap();
    server.apply(&(slice("web-1", "web", "10.1.0.1") + &node("node-a", "z1") + &node("node-b", "z2"))).unwrap();
    let other = service("other", "10.96.0.2").replace(
        "namespace: default}",
        "namespace: default, labels: {service.kubernetes.io/service-proxy-name: theirs}}",
    );
    server.apply(&other).unwrap();
    server.apply(&service("broken", "10.96.0.3").replace("port: 80", "port: eighty")).unwrap();
    let mut agent = Agent::start(&server).await;
    agent.becomes(&["web"], &["10.1.0.1"]).await;
    assert_eq!(agent.skips, 1);
    assert_eq!(agent.snapshot.node_facts().zone.as_deref(), Some("z1"));
    // A label that comes or goes makes an object go or come.
    server.apply(&service("other", "10.96.0.2")).unwrap();
    agent.becomes(&["other", "web"], &["10.1.0.1"]).await;
    server.apply(&other).unwrap();
    agent.becomes(&["web"], &["10.1.0.1"]).await;
    server.apply(&slice("web-1", "moved", "10.1.0.2")).unwrap();
    agent.becomes(&["web"], &["10.1.0.2"]).await;
    assert_eq!(agent.snapshot.slices_of(&ServiceName::new("default", "web")).count(), 0);
    server.delete("EndpointSlice", "default", "web-1").unwrap();
    agent.becomes(&["web"], &[]).await;
}

#[tokio::test]
async fn broken_streams_lose_nothing() {
    let server = ApiServer::start_local(Config::default()).unwrap();
    server.apply(&(service("a", "10.96.0.1") + &node("node-a", "z1"))).unwrap();
    let mut agent = Agent::start(&server).await;
    agent.becomes(&["a"], &[]).await;
    let lists = server.count("services", Verb::List);
    server.faults().close_watches();
    server.apply(&service("b", "10.96.0.2")).unwrap();
    agent.becomes(&["a", "b"], &[]).await;
    server.faults().truncate_chunk();
    server.apply(&service("c", "10.96.0.3")).unwrap();
    agent.becomes(&["a", "b", "c"], &[]).await;
    server.faults().garbage();
    server.apply(&service("d", "10.96.0.4")).unwrap();
    server.delete("Service", "default", "a").unwrap();
    agent.becomes(&["b", "c", "d"], &[]).await;
    assert_eq!(server.count("services", Verb::List), lists, "a broken stream is resumed, not listed anew");
}

#[tokio::test]
async fn a_forgotten_version_is_listed_anew() {
    for form in [GoneAs::Event, GoneAs::HttpStatus] {
        let server = ApiServer::start_local(Config::default()).unwrap();
        server.apply(&(service("a", "10.96.0.1") + &service("b", "10.96.0.2") + &node("node-a", "z1"))).unwrap();
        let mut agent = Agent::start(&server).await;
        agent.becomes(&["a", "b"], &[]).await;
        server.faults().gone_next_watch(form);
        server.faults().close_watches();
        server.delete("Service", "default", "a").unwrap();
        server.apply(&service("c", "10.96.0.3")).unwrap();
        server.compact();
        agent.becomes(&["b", "c"], &[]).await;
    }
}

#[tokio::test]
async fn an_outage_keeps_the_state_and_ends_in_the_new_one() {
    let mut server = ApiServer::start_local(Config::default()).unwrap();
    server.apply(&(service("a", "10.96.0.1") + &slice("a-1", "a", "10.1.0.1") + &node("node-a", "z1"))).unwrap();
    let mut agent = Agent::start(&server).await;
    agent.becomes(&["a"], &["10.1.0.1"]).await;
    let address = server.address();
    server.stop();
    server.delete("Service", "default", "a").unwrap();
    server.apply(&(service("b", "10.96.0.2") + &slice("a-1", "b", "10.1.0.2"))).unwrap();
    server.compact();
    time::sleep(Duration::from_secs(1)).await;
    assert!(agent.events.try_recv().is_err(), "an outage is no change");
    server.serve(TcpListener::bind(address).unwrap()).unwrap();
    server.faults().fail_next(503, 3);
    agent.becomes(&["b"], &["10.1.0.2"]).await;
}
