//! The API server double, asked by a plain HTTP client and by kube-rs. No root needed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{pin::pin, time::Duration};

use axum::body::Bytes;
use futures::{StreamExt, TryStreamExt};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use proxy_rig::apiserver::{ApiServer, Config, GoneAs, Verb};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};

const LIMIT: Duration = Duration::from_secs(5);
const SERVICES: &str = "/api/v1/services";

fn service(name: &str, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  labels: {{{labels}}}\nspec:\n  \
         clusterIP: 10.96.0.10\n  ports:\n  - port: 80\n"
    )
}

fn server() -> ApiServer {
    ApiServer::start_local(Config::default()).unwrap()
}

async fn send(server: &ApiServer, method: &str, path: &str, form: &str, body: &str) -> Response<Incoming> {
    let stream = TcpStream::connect(server.address()).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path);
    let request = request.header("host", "rig").header("content-type", form);
    let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap();
    sender.send_request(request).await.unwrap()
}

/// Status code and JSON body.
async fn get(server: &ApiServer, path: &str) -> (u16, Value) {
    read(send(server, "GET", path, "", "").await).await
}

async fn read(response: Response<Incoming>) -> (u16, Value) {
    let status = response.status().as_u16();
    let body = response.collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap();
    items.iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

/// The lines of a watch.
struct Lines(Incoming, Vec<u8>);

impl Lines {
    async fn open(server: &ApiServer, query: &str) -> Self {
        let response = send(server, "GET", &format!("{SERVICES}?watch=1&{query}"), "", "").await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["transfer-encoding"], "chunked");
        Self(response.into_body(), Vec::new())
    }

    /// None at the end of the stream, Err where it breaks.
    async fn next_line(&mut self) -> Result<Option<String>, String> {
        loop {
            if let Some(end) = self.1.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.1.drain(..=end).collect();
                return Ok(Some(String::from_utf8(line).unwrap()));
            }
            match timeout(LIMIT, self.0.frame()).await.map_err(|_| "silent")? {
                Some(Ok(frame)) => self.1.extend(frame.into_data().unwrap()),
                Some(Err(error)) => return Err(error.to_string()),
                None => return Ok(None),
            }
        }
    }

    /// "TYPE name" of the next event, with the version for bookmarks and the code for errors.
    async fn next_event(&mut self) -> String {
        let line = self.next_line().await.unwrap().expect("the watch ended");
        let event: Value = serde_json::from_str(&line).unwrap();
        let object = &event["object"];
        let what = match event["type"].as_str().unwrap() {
            "BOOKMARK" => &object["metadata"]["resourceVersion"],
            "ERROR" => &object["code"],
            _ => &object["metadata"]["name"],
        };
        format!("{} {}", event["type"].as_str().unwrap(), what.to_string().trim_matches('"'))
    }
}

#[tokio::test]
async fn lists_and_single_objects() {
    let server = server();
    server.apply(&[service("b", "app: web"), service("a", "app: db"), "---\n".into()].join("---\n")).unwrap();
    let (status, list) = get(&server, SERVICES).await;
    assert_eq!((status, names(&list)), (200, vec!["a", "b"]));
    assert_eq!(list["kind"], "ServiceList");
    assert_eq!(list["metadata"]["resourceVersion"], server.resource_version().to_string());
    let (_, list) = get(&server, &format!("{SERVICES}?labelSelector=app%20in%20(web)&resourceVersion=0")).await;
    assert_eq!(names(&list), ["b"]);
    let (_, list) = get(&server, "/api/v1/namespaces/other/services").await;
    assert!(names(&list).is_empty());
    let (status, object) = get(&server, "/api/v1/namespaces/default/services/a").await;
    assert_eq!((status, &object["kind"]), (200, &json!("Service")));
    let (status, object) = get(&server, "/api/v1/namespaces/default/services/z").await;
    assert_eq!((status, &object["reason"]), (404, &json!("NotFound")));
    assert_eq!(get(&server, &format!("{SERVICES}?fieldSelector=spec.x%3D1")).await.0, 400);
    assert_eq!(get(&server, &format!("{SERVICES}?resourceVersion=999")).await.0, 504);
    assert_eq!(get(&server, "/version").await.1["major"], "1");
    assert_eq!(server.count("services", Verb::List), 4 + 1);
    assert_eq!(server.count("services", Verb::Get), 2);
}

#[tokio::test]
async fn pages_show_one_state() {
    let server = server();
    for name in ["a", "b", "c", "d", "e"] {
        server.apply(&service(name, "")).unwrap();
    }
    let (_, first) = get(&server, &format!("{SERVICES}?limit=2")).await;
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    server.delete("Service", "default", "d").unwrap();
    let token = first["metadata"]["continue"].as_str().unwrap();
    let (_, rest) = get(&server, &format!("{SERVICES}?continue={token}")).await;
    assert_eq!(names(&rest), ["c", "d", "e"]);
    assert_eq!(rest["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    server.compact();
    assert_eq!(get(&server, &format!("{SERVICES}?continue={token}")).await.0, 410);
}

#[tokio::test]
async fn a_watch_follows_its_selection() {
    let server = server();
    server.apply(&service("old", "app: web")).unwrap();
    let version = server.resource_version();
    let mut lines = Lines::open(&server, &format!("resourceVersion={version}&labelSelector=app%3Dweb")).await;
    server.apply(&service("new", "app: web")).unwrap();
    server.apply(&service("other", "app: db")).unwrap();
    server.apply(&service("new", "app: web, tier: front")).unwrap();
    server.apply(&service("other", "app: web")).unwrap();
    server.apply(&service("new", "app: db")).unwrap();
    server.delete("Service", "default", "old").unwrap();
    for expected in ["ADDED new", "MODIFIED new", "ADDED other", "DELETED new", "DELETED old"] {
        assert_eq!(lines.next_event().await, expected);
    }
    assert_eq!(server.open_watches(), 1);
}

#[tokio::test]
async fn initial_events_and_bookmarks() {
    let config = Config { bookmark_interval: Duration::from_millis(50), ..Config::default() };
    let server = ApiServer::start_local(config).unwrap();
    server.apply(&service("a", "")).unwrap();
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut lines = Lines::open(&server, query).await;
    assert_eq!(lines.next_event().await, "ADDED a");
    let end = lines.next_line().await.unwrap().unwrap();
    assert!(end.contains("BOOKMARK") && end.contains(r#""k8s.io/initial-events-end":"true""#), "{end}");
    server.apply("{apiVersion: v1, kind: Node, metadata: {name: n}}").unwrap();
    // A change elsewhere moves the bookmark.
    let moved = format!("BOOKMARK {}", server.resource_version());
    while lines.next_event().await != moved {}

    let mut plain = Lines::open(&server, "timeoutSeconds=0").await;
    assert_eq!(plain.next_event().await, "ADDED a");
    assert_eq!(plain.next_line().await, Ok(None));
}

#[tokio::test]
async fn a_server_without_watch_list_refuses_initial_events() {
    let config = Config { watch_list: false, ..Config::default() };
    let server = ApiServer::start_local(config).unwrap();
    let (status, body) = get(&server, &format!("{SERVICES}?watch=1&sendInitialEvents=true")).await;
    assert_eq!((status, &body["reason"]), (422, &json!("Invalid")));
}

#[tokio::test]
async fn faults_of_watches() {
    let server = server();
    server.apply(&service("a", "")).unwrap();
    let mut lines = Lines::open(&server, "").await;
    assert_eq!(lines.next_event().await, "ADDED a");
    server.faults().garbage();
    let line = lines.next_line().await.unwrap().unwrap();
    assert!(serde_json::from_str::<Value>(&line).is_err());
    server.apply(&service("b", "")).unwrap();
    assert_eq!(lines.next_event().await, "ADDED b");
    server.faults().truncate_chunk();
    assert!(lines.next_line().await.is_err());

    let mut lines = Lines::open(&server, "resourceVersion=1").await;
    lines.next_event().await;
    lines.next_event().await;
    server.faults().half_open();
    tokio::time::sleep(Duration::from_millis(20)).await;
    server.apply(&service("c", "")).unwrap();
    assert!(timeout(Duration::from_millis(100), lines.next_line()).await.is_err());
    drop(lines);

    let mut lines = Lines::open(&server, &format!("resourceVersion={}", server.resource_version())).await;
    server.faults().close_watches();
    assert_eq!(lines.next_line().await, Ok(None));
}

#[tokio::test]
async fn too_old_versions_are_gone() {
    let config = Config { history: 3, ..Config::default() };
    let server = ApiServer::start_local(config).unwrap();
    for name in ["a", "b", "c", "d", "e"] {
        server.apply(&service(name, "")).unwrap();
    }
    let mut lines = Lines::open(&server, "resourceVersion=2").await;
    assert_eq!(lines.next_event().await, "ERROR 410");
    assert_eq!(lines.next_line().await, Ok(None));
    assert_eq!(get(&server, &format!("{SERVICES}?resourceVersion=2&resourceVersionMatch=Exact")).await.0, 410);
    let now = server.resource_version();
    server.faults().gone_next_watch(GoneAs::Event);
    let mut lines = Lines::open(&server, &format!("resourceVersion={now}")).await;
    assert_eq!(lines.next_event().await, "ERROR 410");
    server.faults().gone_next_watch(GoneAs::HttpStatus);
    assert_eq!(get(&server, &format!("{SERVICES}?watch=1&resourceVersion={now}")).await.0, 410);
    server.faults().fail_next(503, 2);
    assert_eq!(get(&server, SERVICES).await.0, 503);
    assert_eq!(get(&server, SERVICES).await.0, 503);
    assert_eq!(get(&server, SERVICES).await.0, 200);
}

#[tokio::test]
async fn down_and_up_again_with_the_same_objects() {
    let mut server = server();
    server.apply(&service("a", "")).unwrap();
    let mut lines = Lines::open(&server, "").await;
    lines.next_event().await;
    let address = server.address();
    server.stop();
    assert_eq!(lines.next_line().await, Ok(None));
    drop(lines);
    let again = async {
        loop {
            if let Ok(listener) = std::net::TcpListener::bind(address) {
                return listener;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let listener = timeout(LIMIT, again).await.unwrap();
    server.serve(listener).unwrap();
    assert_eq!(names(&get(&server, SERVICES).await.1), ["a"]);
}

#[tokio::test]
async fn writes_over_http() {
    let server = server();
    let client = Client::try_from(kube::Config::new(server.url().parse().unwrap())).unwrap();
    let api: Api<Service> = Api::namespaced(client, "web");
    let object: Service =
        serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": {"clusterIP": "10.96.0.1"}})).unwrap();
    let created = api.create(&PostParams::default(), &object).await.unwrap();
    assert!(created.metadata.uid.is_some());
    let error = api.create(&PostParams::default(), &object).await.unwrap_err();
    assert!(matches!(error, kube::Error::Api(status) if status.code == 409 && status.reason == "AlreadyExists"));
    let patch = Patch::Merge(json!({"metadata": {"labels": {"app": "web"}}}));
    api.patch("a", &PatchParams::default(), &patch).await.unwrap();
    // The object from before the patch is out of date.
    let error = api.replace("a", &PostParams::default(), &created).await.unwrap_err();
    assert!(matches!(error, kube::Error::Api(status) if status.code == 409 && status.reason == "Conflict"));
    let selected = api.list(&ListParams::default().labels("app=web")).await.unwrap();
    assert_eq!(selected.items.len(), 1);
    api.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(server.get("Service", "web", "a").unwrap(), None);
}

/// kube's watcher through list, watch, a lost stream, and a version that is gone; both ways to start.
#[tokio::test]
async fn kube_watcher_keeps_up() {
    for config in [watcher::Config::default().any_semantic(), watcher::Config::default().streaming_lists()] {
        let server = server();
        server.apply(&service("a", "")).unwrap();
        let client = Client::try_from(kube::Config::new(server.url().parse().unwrap())).unwrap();
        let stream = watcher(Api::<Service>::all(client), config).default_backoff().applied_objects();
        let mut stream = pin!(stream.filter(|object| std::future::ready(object.is_ok())));
        let mut next = async || {
            let object = timeout(LIMIT, stream.try_next()).await.unwrap().unwrap().unwrap();
            object.metadata.name.unwrap()
        };
        assert_eq!(next().await, "a");
        server.apply(&service("b", "")).unwrap();
        assert_eq!(next().await, "b");
        server.faults().close_watches();
        server.apply(&service("c", "")).unwrap();
        assert_eq!(next().await, "c");
        // After 410 the watcher lists again and shows everything anew.
        server.compact();
        server.faults().gone_next_watch(GoneAs::Event);
        server.faults().close_watches();
        let mut seen = [next().await, next().await, next().await];
        seen.sort();
        assert_eq!(seen, ["a", "b", "c"]);
    }
}

#[tokio::test]
async fn the_kubeconfig_leads_here() {
    let server = server();
    server.apply(&service("a", "")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    server.write_kubeconfig(&path).unwrap();
    let kubeconfig = kube::config::Kubeconfig::read_from(&path).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
    let api: Api<Service> = Api::all(Client::try_from(config).unwrap());
    assert_eq!(api.list(&ListParams::default()).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn lists_of_objects_apply_as_one() {
    let server = server();
    let item = "{apiVersion: v1, kind: Node, metadata: {name: n1}}";
    server.apply(&format!("apiVersion: v1\nkind: List\nitems:\n- {item}\n")).unwrap();
    let before = server.resource_version();
    server.apply(item).unwrap();
    assert_eq!(server.resource_version(), before, "an unchanged object is no change");
    assert_eq!(server.list("Node").unwrap().len(), 1);
    assert!(server.apply("{apiVersion: v2, kind: Unicorn, metadata: {name: x}}").is_err());
}
