//! Writes Events to the API server (events.k8s.io/v1: create and patch), one after the other, and tries again what failed.

use std::time::{Duration, Instant};

use k8s_openapi::{
    api::{
        core::v1::{Node, ObjectReference, Pod, Service},
        discovery::v1::EndpointSlice,
        events::v1::{Event, EventSeries},
        networking::v1::ServiceCIDR,
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::ApiResource,
};
use serde_json::json;
use tokio::{sync::mpsc, time};

use super::{
    Notice,
    ledger::{Ledger, Write},
};
use crate::{
    model::ObjectRef,
    sources::{
        Warnings,
        kubernetes::{KubernetesConfig, connect},
    },
};

const CONTROLLER: &str = "weir";
/// What was being done; a server requires it.
const ACTION: &str = "Programming";
/// How often the ledger is asked when nothing happens.
const TICK: Duration = Duration::from_secs(5);
/// Pauses after a failure double from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// An answer that takes longer is a failure.
const LIMIT: Duration = Duration::from_secs(20);
/// Bytes of an object's name in front of the digest that makes an Event's name, of 253.
const NAME_LEN: usize = 200;
const NOT_FOUND: u16 = 404;
const CONFLICT: u16 = 409;
/// Refusals that another attempt may not meet.
const PASSING: [u16; 2] = [408, 429];

#[derive(Debug, thiserror::Error)]
enum RecordError {
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("no answer within {} s", LIMIT.as_secs())]
    Silence,
}

/// Runs until all senders are gone.
pub(super) async fn record(config: KubernetesConfig, node_name: String, mut notices: mpsc::Receiver<Notice>) {
    let mut warnings = Warnings::default();
    let client = loop {
        match connect(&config).await {
            Ok(client) => break client,
            // The source of the objects says why; both wait for the same kubeconfig.
            Err(_) => time::sleep(LONGEST_PAUSE).await,
        }
    };
    let recorder = Recorder { client, node_name };
    let mut ledger = Ledger::new(Instant::now());
    let mut pause = FIRST_PAUSE;
    let mut next = time::Instant::now();
    loop {
        tokio::select! {
            notice = notices.recv() => match notice {
                Some(notice) => ledger.see(notice, Instant::now()),
                None => return,
            },
            () = time::sleep_until(next) => {}
        }
        if time::Instant::now() < next && pause > FIRST_PAUSE {
            continue;
        }
        next = time::Instant::now() + TICK;
        while let Some(write) = ledger.next(Instant::now()) {
            match recorder.write(&write).await {
                Ok(earlier) => {
                    pause = FIRST_PAUSE;
                    ledger.add_earlier(&write, earlier);
                }
                Err(error) if error.is_final() => {
                    warnings.warn(format_args!("an Event about {} is refused: {error}", write.notice.object));
                }
                Err(error) => {
                    warnings.warn(format_args!("writing Events: {error}; trying again"));
                    ledger.failed(&write);
                    next = time::Instant::now() + pause;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    break;
                }
            }
        }
    }
}

impl RecordError {
    /// Another attempt would meet the same answer.
    fn is_final(&self) -> bool {
        match self {
            RecordError::Api(kube::Error::Api(status)) => {
                (400..500).contains(&status.code) && !PASSING.contains(&status.code)
            }
            _ => false,
        }
    }

    fn is(&self, code: u16) -> bool {
        matches!(self, RecordError::Api(kube::Error::Api(status)) if status.code == code)
    }
}

struct Recorder {
    client: Client,
    node_name: String,
}

impl Recorder {
    /// Returns how often an earlier run of the agent saw it.
    async fn write(&self, write: &Write) -> Result<u32, RecordError> {
        let Some(regarding) = in_time(self.reference(&write.notice.object)).await? else {
            tracing::debug!(object = %write.notice.object, "gone before the Event about it");
            return Ok(0);
        };
        let event = self.event(write, regarding);
        let name = event.metadata.name.clone().unwrap_or_default();
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        if write.again {
            match in_time(api.patch(&name, &PatchParams::default(), &series(write.count))).await {
                // A server forgets Events after some time.
                Err(error) if error.is(NOT_FOUND) => {}
                result => return result.map(|_| 0),
            }
        }
        match in_time(api.create(&PostParams::default(), &event)).await {
            // By an earlier run of the agent: its series goes on. An empty patch reads without the right to read.
            Err(error) if error.is(CONFLICT) => {
                let empty = Patch::Merge(json!({}));
                let before = in_time(api.patch(&name, &PatchParams::default(), &empty)).await?;
                let count = before.series.map_or(1, |series| u32::try_from(series.count).unwrap_or(1));
                let more = series(count.saturating_add(write.count));
                in_time(api.patch(&name, &PatchParams::default(), &more)).await.map(|_| count)
            }
            result => result.map(|_| 0),
        }
    }

    /// With the object's uid, by which `kubectl describe` finds its Events; None if the object is gone. The right to list is
    /// there already.
    async fn reference(&self, object: &ObjectRef) -> kube::Result<Option<ObjectReference>> {
        let Some(resource) = resource(object.kind) else { return Ok(None) };
        let namespace = Some(&*object.namespace).filter(|it| !it.is_empty());
        let api: Api<DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        let wanted = ListParams::default().fields(&format!("metadata.name={}", object.name));
        let found = api.list(&wanted).await?.items.into_iter().next();
        Ok(found.map(|found| ObjectReference {
            api_version: Some(resource.api_version.clone()),
            kind: Some(resource.kind.clone()),
            namespace: namespace.map(str::to_owned),
            name: found.metadata.name,
            uid: found.metadata.uid,
            resource_version: found.metadata.resource_version,
            field_path: None,
        }))
    }

    fn event(&self, write: &Write, regarding: ObjectReference) -> Event {
        let now = MicroTime(Timestamp::now());
        let Write { notice, count, .. } = write;
        let metadata = ObjectMeta {
            name: Some(self.name(notice, regarding.uid.as_deref().unwrap_or_default())),
            // Events about what has no namespace belong there.
            namespace: Some(regarding.namespace.clone().unwrap_or_else(|| "default".to_owned())),
            ..ObjectMeta::default()
        };
        let series = (*count > 1)
            .then(|| EventSeries { count: i32::try_from(*count).unwrap_or(i32::MAX), last_observed_time: now.clone() });
        Event {
            metadata,
            action: Some(ACTION.to_owned()),
            event_time: Some(now),
            note: Some(notice.note.clone()),
            reason: Some(notice.reason.as_str().to_owned()),
            regarding: Some(regarding),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(self.node_name.clone()),
            series,
            type_: Some("Warning".to_owned()),
            ..Event::default()
        }
    }

    /// The same for the same Event, so that the next run of the agent goes on with it.
    fn name(&self, notice: &Notice, uid: &str) -> String {
        let parts = [&self.node_name, notice.object.kind, uid, notice.reason.as_str(), &notice.note];
        // FNV-1a of 64 bits, whose value never changes with a version of the standard library.
        let digest = parts
            .iter()
            .flat_map(|part| part.bytes().chain([0]))
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let object = &notice.object.name;
        format!("{}.{digest:016x}", &object[..object.floor_char_boundary(NAME_LEN)])
    }
}

fn series(count: u32) -> Patch<serde_json::Value> {
    // A series of less than two is none to a server.
    let series = EventSeries {
        count: i32::try_from(count.max(2)).unwrap_or(i32::MAX),
        last_observed_time: MicroTime(Timestamp::now()),
    };
    Patch::Merge(json!({"series": series}))
}

async fn in_time<T>(answer: impl Future<Output = kube::Result<T>>) -> Result<T, RecordError> {
    Ok(time::timeout(LIMIT, answer).await.map_err(|_| RecordError::Silence)??)
}

fn resource(kind: &str) -> Option<ApiResource> {
    Some(match kind {
        "Service" => ApiResource::erase::<Service>(&()),
        "EndpointSlice" => ApiResource::erase::<EndpointSlice>(&()),
        "Node" => ApiResource::erase::<Node>(&()),
        "Pod" => ApiResource::erase::<Pod>(&()),
        "ServiceCIDR" => ApiResource::erase::<ServiceCIDR>(&()),
        _ => return None,
    })
}
