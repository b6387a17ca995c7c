//! One watch: initial objects, then events, bookmarks and disturbances, as lines of JSON in a chunked body.

use std::{collections::VecDeque, io, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::stream;
use serde_json::{Value, json};
use tokio::{
    sync::broadcast::error::RecvError,
    time::{Instant, Interval, interval_at, sleep_until},
};

use super::{
    Shared,
    faults::{Disturbance, GoneAs, Listener},
    request::{Options, Target},
    selector::Selector,
    status::Status,
    store::{Event, Gone, Key},
};

const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";
/// Without `timeoutSeconds`. Real servers take 30 to 60 minutes.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);

const GARBAGE: &[u8] = b"\x00garbage{]\n";

struct Watch {
    shared: Arc<Shared>,
    target: Target,
    selector: Selector,
    bookmarks: bool,
    /// Everything up to this version was sent or left out.
    position: u64,
    lines: VecDeque<io::Result<Bytes>>,
    /// The last two events that were sent.
    sent: VecDeque<Bytes>,
    changed: tokio::sync::watch::Receiver<u64>,
    listener: Listener,
    deadline: Instant,
    bookmark_clock: Interval,
    ended: bool,
}

/// Where a watch begins.
struct Start {
    position: Option<u64>,
    initial_objects: bool,
    end_marker: bool,
}

/// Answers a watch request.
pub(super) fn respond(shared: &Arc<Shared>, target: Target, options: &Options) -> Result<Response, Status> {
    let selector = options.selector()?;
    let start = Start::of(shared, options)?;
    let timeout = options.timeout_seconds()?.map_or(DEFAULT_TIMEOUT, Duration::from_secs);
    let pace = shared.config.bookmark_interval;
    let mut watch = Watch {
        target,
        selector,
        bookmarks: options.wants_bookmarks(),
        position: 0,
        lines: VecDeque::new(),
        sent: VecDeque::new(),
        changed: shared.changed.subscribe(),
        listener: shared.faults.listen(),
        deadline: Instant::now() + timeout,
        bookmark_clock: interval_at(Instant::now() + pace, pace),
        ended: false,
        shared: Arc::clone(shared),
    };
    match shared.faults.take_gone() {
        Some(form) => {
            let version = start.position.unwrap_or_default();
            let oldest = shared.store().version();
            let status = Status::gone(version, Gone { oldest });
            if form == GoneAs::HttpStatus {
                return Err(status);
            }
            watch.fail(&status);
        }
        None => watch.begin(&start),
    }
    let body = stream::unfold(watch, async |mut watch| watch.next().await.map(|line| (line, watch)));
    Ok(([(header::CONTENT_TYPE, "application/json")], Body::from_stream(body)).into_response())
}

impl Start {
    fn of(shared: &Shared, options: &Options) -> Result<Self, Status> {
        let version = options.version()?;
        let Some(initial) = options.initial_events() else {
            return Ok(Self { position: version, initial_objects: version.is_none(), end_marker: false });
        };
        let unprocessable = |message| Err(Status::new(StatusCode::UNPROCESSABLE_ENTITY, message));
        if !shared.config.watch_list {
            return unprocessable(
                "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
            );
        }
        if options.resource_version_match != "NotOlderThan" {
            return unprocessable("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
        }
        Ok(Self { position: version, initial_objects: initial, end_marker: initial && options.wants_bookmarks() })
    }
}

impl Watch {
    fn begin(&mut self, start: &Start) {
        let store = self.shared.store();
        self.position = store.version();
        if !start.initial_objects {
            self.position = start.position.unwrap_or(self.position);
            return;
        }
        let objects = store.current(self.target.resource);
        drop(store);
        for (key, object) in objects {
            if self.selects(&key.namespace, &key.name, &object) {
                self.push("ADDED", &object);
            }
        }
        if start.end_marker {
            let mut bookmark = self.bookmark();
            bookmark["metadata"]["annotations"] = json!({ INITIAL_EVENTS_END: "true" });
            self.push("BOOKMARK", &bookmark);
        }
    }

    /// The next piece of the body; none at its end.
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            if self.ended {
                return None;
            }
            self.changed.mark_unchanged();
            self.read_events();
            if self.lines.is_empty() && !self.ended {
                self.wait().await;
            }
        }
    }

    async fn wait(&mut self) {
        tokio::select! {
            changed = self.changed.changed() => self.ended = changed.is_err(),
            disturbance = self.listener.disturbances.recv() => match disturbance {
                Ok(disturbance) => self.suffer(disturbance).await,
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => self.ended = true,
            },
            _ = self.bookmark_clock.tick(), if self.bookmarks => self.push_bookmark(),
            () = sleep_until(self.deadline) => {
                if self.bookmarks {
                    self.push_bookmark();
                }
                self.ended = true;
            }
        }
    }

    /// Events and version come from one look at the store: a bookmark must not overtake an event.
    fn read_events(&mut self) {
        let store = self.shared.store();
        let events = store.events_after(self.target.resource, self.position);
        let version = store.version();
        drop(store);
        match events {
            Ok(events) => {
                self.position = self.position.max(version);
                events.iter().for_each(|event| self.push_event(event));
            }
            Err(gone) => self.fail(&Status::gone(self.position, gone)),
        }
    }

    /// An object that enters or leaves the selection is added or deleted as far as this watch knows.
    fn push_event(&mut self, event: &Event) {
        let Key { namespace, name } = &event.key;
        let selected =
            |object: &Option<Arc<Value>>| object.clone().filter(|object| self.selects(namespace, name, object));
        match (selected(&event.before), selected(&event.after), &event.after) {
            (None, Some(after), _) => self.push("ADDED", &after),
            (Some(_), Some(after), _) => self.push("MODIFIED", &after),
            // The state before carries the version of the deletion already.
            (Some(before), None, None) => self.push("DELETED", &before),
            (Some(before), None, Some(after)) => {
                let mut last = (*before).clone();
                last["metadata"]["resourceVersion"] = after["metadata"]["resourceVersion"].clone();
                self.push("DELETED", &last);
            }
            (None, None, _) => {}
        }
    }

    async fn suffer(&mut self, disturbance: Disturbance) {
        match disturbance {
            Disturbance::Close => self.ended = true,
            // Ends when the client gives up, which drops the whole watch.
            Disturbance::HalfOpen => std::future::pending().await,
            Disturbance::Truncate => {
                self.lines.push_back(Ok(Bytes::from_static(b"{\"type\":\"MODIFIED\",\"object\":{\"kind\":")));
                self.lines.push_back(Err(io::ErrorKind::ConnectionReset.into()));
                self.ended = true;
            }
            Disturbance::Garbage => self.lines.push_back(Ok(Bytes::from_static(GARBAGE))),
            Disturbance::Replay => self.lines.extend(self.sent.iter().rev().cloned().map(Ok)),
        }
    }

    fn selects(&self, namespace: &str, name: &str, object: &Value) -> bool {
        self.target.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
            && self.target.name.as_deref().is_none_or(|wanted| wanted == name)
            && self.selector.matches(object)
    }

    fn fail(&mut self, status: &Status) {
        self.push("ERROR", &status.body());
        self.ended = true;
    }

    /// A quiet watch has seen everything up to now, whatever the newest change was about.
    fn push_bookmark(&mut self) {
        self.read_events();
        if !self.ended {
            let bookmark = self.bookmark();
            self.push("BOOKMARK", &bookmark);
        }
    }

    fn bookmark(&self) -> Value {
        // After a restore it says the truth, while the watch still waits for later versions: so do real servers.
        let version = self.position.min(self.shared.store().version());
        json!({
            "kind": self.target.resource.kind,
            "apiVersion": self.target.resource.api_version(),
            "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null},
        })
    }

    fn push(&mut self, kind: &str, object: &Value) {
        let line = Bytes::from(format!("{}\n", json!({"type": kind, "object": object})));
        if matches!(kind, "BOOKMARK" | "ERROR") {
            self.lines.push_back(Ok(line));
            return;
        }
        if self.shared.faults.take_garbled(self.target.resource.plural) {
            self.lines.push_back(Ok(Bytes::from_static(GARBAGE)));
            return;
        }
        self.sent.push_back(line.clone());
        if self.sent.len() > 2 {
            self.sent.pop_front();
        }
        self.lines.push_back(Ok(line));
    }
}
