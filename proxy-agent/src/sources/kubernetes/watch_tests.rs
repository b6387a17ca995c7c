//! Listing and watching against a few lines of HTTP: what is asked for, relisting, and broken objects.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc::{Receiver, UnboundedReceiver, UnboundedSender, unbounded_channel},
};

use super::*;
use crate::model::Change;

/// One request, as its path with query, and the connection that waits for the answer.
struct Request {
    target: String,
    connection: TcpStream,
}

impl Request {
    fn query(&self) -> BTreeMap<&str, &str> {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        query.split('&').filter_map(|pair| pair.split_once('=')).collect()
    }

    async fn answer(mut self, status: &str, body: &str) {
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n");
        self.connection.write_all(format!("{head}{body}").as_bytes()).await.expect("a listening client");
        self.connection.shutdown().await.expect("a listening client");
    }

    async fn list(self, version: &str, items: &[Value]) {
        let body = json!({"metadata": {"resourceVersion": version}, "items": items});
        self.answer("200 OK", &body.to_string()).await;
    }
}

async fn accept(listener: TcpListener, requests: UnboundedSender<Request>) {
    while let Ok((mut connection, _)) = listener.accept().await {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match connection.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
        let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
        if requests.send(Request { target, connection }).is_err() {
            return;
        }
    }
}

async fn server<T: Watched + 'static>() -> (UnboundedReceiver<Request>, Receiver<Event>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let config = KubernetesConfig { master: Some(format!("http://{address}")), ..KubernetesConfig::default() };
    let client = connect(&config).await.expect("a client");
    let (requests, received) = unbounded_channel();
    let (sender, events) = mpsc::channel(64);
    tokio::spawn(accept(listener, requests));
    tokio::spawn(async move { watch_kind::<T>(&client, "node-a", WATCH_TIMEOUT_S, &sender).await });
    (received, events)
}

async fn next<T>(future: impl Future<Output = Option<T>>) -> T {
    time::timeout(Duration::from_secs(8), future).await.expect("in time").expect("one more")
}

fn service(name: &str, version: &str, spec: &Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "resourceVersion": version}, "spec": spec})
}

/// Events in short: `+web`, `-web`, `synced`, `skipped spec.ports[0].port`.
async fn short(events: &mut Receiver<Event>, count: usize) -> Vec<String> {
    let mut found = Vec::new();
    for _ in 0..count {
        found.push(match next(events.recv()).await {
            Event::Service(Change::Applied(it)) => format!("+{}", it.name.name),
            Event::Service(Change::Deleted(it)) => format!("-{}", it.name),
            Event::Node(Change::Applied(it)) => format!("+{}", it.name),
            Event::Pod(Change::Applied(it)) => format!("+{}", it.name),
            Event::Pod(Change::Deleted(it)) => format!("-{it}"),
            Event::ServiceCidr(Change::Applied(it)) => format!("+{}", it.cidrs[0]),
            Event::ServiceCidr(Change::Deleted(it)) => format!("-{it}"),
            Event::Synced(_) => "synced".to_owned(),
            Event::Skipped(skips) => format!("skipped {}", skips[0].field),
            other => panic!("not expected: {other:?}"),
        });
    }
    found
}

#[tokio::test]
async fn list_watch_expiry_and_relist() {
    let (mut requests, mut events) = server::<Service>().await;
    let good = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});

    let list = next(requests.recv()).await;
    assert!(list.target.starts_with("/api/v1/services?"), "{}", list.target);
    assert_eq!(list.query().get("labelSelector"), Some(&"%21service.kubernetes.io%2Fservice-proxy-name"));
    assert_eq!(list.query().get("resourceVersion"), Some(&"0"));
    let broken = service("broken", "3", &json!({"ports": [{"port": "eighty"}]}));
    list.list("5", &[service("a", "1", &good), broken, service("b", "2", &good)]).await;
    assert_eq!(short(&mut events, 4).await, ["+a", "skipped spec.ports[0].port", "+b", "synced"]);

    let watch = next(requests.recv()).await;
    assert_eq!(watch.query().get("watch"), Some(&"true"));
    assert_eq!(watch.query().get("allowWatchBookmarks"), Some(&"true"));
    assert_eq!(watch.query().get("resourceVersion"), Some(&"5"));
    let line = |kind: &str, object: Value| format!("{}\n", json!({"type": kind, "object": object}));
    let bookmark = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"resourceVersion": "9"}});
    let lines = [
        line("ADDED", service("c", "6", &good)),
        line("MODIFIED", service("b", "7", &json!({"clusterIP": "None"}))),
        line("DELETED", service("c", "8", &good)),
        line("BOOKMARK", bookmark),
    ];
    watch.answer("200 OK", &lines.concat()).await;
    assert_eq!(short(&mut events, 3).await, ["+c", "-b", "-c"]);

    // The bookmark's version is where it goes on; the server has forgotten even that one.
    let resumed = next(requests.recv()).await;
    assert_eq!(resumed.query().get("resourceVersion"), Some(&"9"));
    let gone = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"});
    resumed.answer("410 Gone", &gone.to_string()).await;

    let relist = next(requests.recv()).await;
    assert_eq!(relist.query().get("watch"), None, "{}", relist.target);
    relist.list("20", &[service("d", "19", &good)]).await;
    assert_eq!(short(&mut events, 3).await, ["+d", "-a", "synced"]);
}

#[tokio::test]
async fn the_own_node_by_name_and_errors_are_survived() {
    let (mut requests, mut events) = server::<Node>().await;
    let list = next(requests.recv()).await;
    assert_eq!(list.query().get("fieldSelector"), Some(&"metadata.name%3Dnode-a"), "{}", list.target);
    list.answer("500 Internal Server Error", "not even JSON").await;
    // After a pause it asks again (the client may have retried by itself before).
    let list = next(requests.recv()).await;
    list.list("5", &[json!({"metadata": {"name": "node-a", "resourceVersion": "1"}})]).await;
    assert_eq!(short(&mut events, 2).await, ["+node-a", "synced"]);
    // With nobody left to read, the watch ends.
    drop(events);
}

#[tokio::test]
async fn a_server_without_service_ranges_is_asked_again_and_not_waited_for() {
    let (mut requests, mut events) = server::<ServiceCidr>().await;
    let list = next(requests.recv()).await;
    assert!(list.target.starts_with("/apis/networking.k8s.io/v1/servicecidrs?"), "{}", list.target);
    let missing = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound",
                         "message": "the server could not find the requested resource"});
    list.answer("404 Not Found", &missing.to_string()).await;
    assert_eq!(short(&mut events, 1).await, ["synced"]);
    let again = next(requests.recv()).await;
    again.list("5", &[json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/12"]}})]).await;
    assert_eq!(short(&mut events, 2).await, ["+10.96.0.0/12", "synced"]);
}

#[tokio::test]
async fn pods_of_the_own_node_and_only_those_with_host_ports() {
    let (mut requests, mut events) = server::<Pod>().await;
    let list = next(requests.recv()).await;
    assert_eq!(list.query().get("fieldSelector"), Some(&"spec.nodeName%3Dnode-a"), "{}", list.target);
    let pod = |name: &str, port: Value| {
        json!({"metadata": {"name": name, "namespace": "default", "resourceVersion": "1"},
               "spec": {"nodeName": "node-a", "containers": [{"name": "c", "ports": [port]}]},
               "status": {"phase": "Running", "podIPs": [{"ip": "10.244.1.10"}]}})
    };
    let with = pod("with", json!({"containerPort": 80, "hostPort": 8080}));
    list.list("5", &[pod("without", json!({"containerPort": 80})), with]).await;
    assert_eq!(short(&mut events, 2).await, ["+default/pod/with", "synced"]);
    let watch = next(requests.recv()).await;
    let mut ended = pod("with", json!({"containerPort": 80, "hostPort": 8080}));
    ended["status"]["phase"] = json!("Succeeded");
    ended["metadata"]["resourceVersion"] = json!("6");
    watch.answer("200 OK", &format!("{}\n", json!({"type": "MODIFIED", "object": ended}))).await;
    assert_eq!(short(&mut events, 1).await, ["-default/pod/with"]);
}

/// Resident memory of this process, in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).expect("a number")
}

/// A day of refused connections, with pauses that are shortened: no event, no growing memory, and afterwards the new state.
#[tokio::test]
async fn a_day_without_a_server() {
    const DAY: Duration = Duration::from_secs(86_400);
    const SPEED: u32 = 20_000;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let config = KubernetesConfig { master: Some(format!("http://{address}")), ..KubernetesConfig::default() };
    let client = connect(&config).await.expect("a client");
    let (sender, mut events) = mpsc::channel(64);
    let (requests, mut received) = unbounded_channel();
    let accepting = tokio::spawn(accept(listener, requests.clone()));
    let good = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
    let server = Server { client, selection: Service::selection("node-a"), watch_timeout_s: WATCH_TIMEOUT_S };
    let mut watch = Watch::<Service>::new(&sender, Pace::at_speed(SPEED));
    let first = async {
        next(received.recv()).await.list("5", &[service("a", "1", &good)]).await;
        assert_eq!(short(&mut events, 2).await, ["+a", "synced"]);
        next(received.recv()).await.answer("200 OK", "").await;
        accepting.abort();
        let _ = accepting.await;
    };
    tokio::select! {
        _ = watch.follow(&server) => unreachable!("it has no end"),
        () = first => {}
    }
    // The same attempts as without the select: a list that failed is followed by the next one.
    let before = resident();
    let mut attempts = 0;
    while watch.pace.waited() < DAY {
        let Err(follow::Stop::Failed(error)) = watch.list_once(&server).await else { panic!("nobody answers") };
        watch.list_failed(error).await.expect("a receiver");
        attempts += 1;
    }
    let grown = resident().saturating_sub(before);
    println!("{attempts} attempts in a day, {grown} KiB more");
    assert!((2880..=6000).contains(&attempts), "{attempts} attempts");
    assert!(grown < 8192, "{grown} KiB more");
    assert!(events.try_recv().is_err(), "an outage is no change");

    while received.try_recv().is_ok() {}
    tokio::spawn(accept(TcpListener::bind(address).await.expect("the same port"), requests));
    let last = async {
        next(received.recv()).await.list("2000000", &[service("b", "1999999", &good)]).await;
        assert_eq!(short(&mut events, 3).await, ["+b", "-a", "synced"]);
    };
    tokio::select! {
        _ = watch.follow(&server) => unreachable!("it has no end"),
        () = last => {}
    }
}
