//! Events as the API server double stores them: over real HTTP, without an agent. No root needed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use proxy_agent::{
    events::{Events, Reason, object_of},
    model::ServiceName,
    sources::kubernetes::KubernetesConfig,
};
use proxy_rig::apiserver::{ApiServer, Config, Verb};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time};

const LIMIT: Duration = Duration::from_secs(20);

fn server() -> ApiServer {
    let server = ApiServer::start_local(Config::default()).unwrap();
    for name in ["web", "other"] {
        let metadata = json!({"name": name, "namespace": "default"});
        server.apply_object(json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata})).unwrap();
    }
    server
}

fn start(server: &ApiServer, tasks: &mut JoinSet<()>) -> Events {
    let config = KubernetesConfig { master: Some(server.url()), ..KubernetesConfig::default() };
    Events::start(&config, "node-a", tasks)
}

fn warn(events: &Events, name: &str, note: &str) {
    events.warn(object_of(&ServiceName::new("default", name)), Reason::MapFull, note);
}

async fn until(server: &ApiServer, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let end = time::Instant::now() + LIMIT;
    loop {
        let events = server.list("Event").unwrap();
        if wanted(&events) {
            return events;
        }
        assert!(time::Instant::now() < end, "{events:#?}\n{:#?}", server.requests());
        time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn an_event_is_complete_and_repeated_ones_are_one() {
    let server = server();
    let mut tasks = JoinSet::new();
    let events = start(&server, &mut tasks);
    warn(&events, "web", "no room");
    let event = until(&server, |events| events.len() == 1).await.remove(0);
    let service = server.get("Service", "default", "web").unwrap().unwrap();
    assert_eq!(event["regarding"]["uid"], service["metadata"]["uid"]);
    assert_eq!(event["regarding"]["kind"], "Service");
    assert_eq!(event["metadata"]["namespace"], "default");
    for (field, value) in [
        ("reason", "MapFull"),
        ("note", "no room"),
        ("type", "Warning"),
        ("reportingController", "weir"),
        ("reportingInstance", "node-a"),
        ("action", "Programming"),
    ] {
        assert_eq!(event[field], value);
    }
    assert!(event["eventTime"].is_string());
    // Not a second time, whatever comes; and an object that is gone has none.
    for _ in 0..100 {
        warn(&events, "web", "no room");
    }
    warn(&events, "nobody", "no room");
    warn(&events, "other", "no room");
    until(&server, |events| events.len() == 2).await;
    assert_eq!(server.count("events", Verb::Create), 2);
    assert_eq!(server.count("events", Verb::Patch), 0);
}

#[tokio::test]
async fn the_next_run_of_the_agent_continues_the_series() {
    let server = server();
    for count in [Value::Null, json!(2), json!(3)] {
        let mut tasks = JoinSet::new();
        let events = start(&server, &mut tasks);
        warn(&events, "web", "no room");
        let found = until(&server, |events| events.len() == 1 && events[0]["series"]["count"] == count).await;
        assert_eq!(found[0]["note"], "no room");
        tasks.shutdown().await;
    }
}

#[tokio::test]
async fn a_server_in_trouble_gets_them_later() {
    let mut server = server();
    let address = server.address();
    server.stop();
    let mut tasks = JoinSet::new();
    let events = start(&server, &mut tasks);
    // More than the queue holds: nobody waits for the recorder.
    for number in 0..1000 {
        warn(&events, "web", &format!("no room {number}"));
    }
    warn(&events, "other", "no room");
    time::sleep(Duration::from_millis(300)).await;
    server.serve(std::net::TcpListener::bind(address).unwrap()).unwrap();
    server.faults().fail_next(500, 2);
    let found = until(&server, |events| events.len() >= 4).await;
    assert!(found.len() <= 5, "{found:#?}");
}

#[tokio::test]
async fn a_refusal_does_not_stop_the_others() {
    let server = server();
    let mut tasks = JoinSet::new();
    let events = start(&server, &mut tasks);
    server.faults().fail_next(403, 1);
    warn(&events, "web", "no room");
    warn(&events, "other", "no room");
    until(&server, |events| events.len() == 1).await;
}
