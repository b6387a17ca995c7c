//! The objects of a step as events of a source: the same ingest as the agent's, without files or an API server.

use anyhow::{Context, Result, bail};
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking};
use proxy_agent::{
    ingest::{self, Interner, Reduced},
    model::{Change, Event, Keyed, ObjectRef, ServiceName, Skip, SkipReason, SliceKey, SourceKind},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::file::{NodeSpec, SliceSpec, Step};

const DEFAULT_NAMESPACE: &str = "default";

/// Makes events from a scenario's steps; remembers the names that the objects share.
#[derive(Default)]
pub(crate) struct ObjectReader {
    names: Interner,
}

impl ObjectReader {
    /// The scenario's node as its source would report it, and the end of all first listings.
    pub(crate) fn node_events(&self, node: &NodeSpec) -> Result<Vec<Event>> {
        let addresses: Vec<Value> =
            node.addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
        let mut labels = serde_json::Map::new();
        if let Some(zone) = &node.zone {
            labels.insert(ingest::ZONE_LABEL.to_owned(), json!(zone));
        }
        let object: core::Node = typed(json!({
            "metadata": {"name": node.name, "labels": labels},
            "status": {"addresses": addresses},
        }))?;
        let node = ingest::reduce_node(&object).value.context("the node has no name")?;
        Ok(vec![
            Event::Node(Change::Applied(node)),
            Event::Synced(SourceKind::Node),
            Event::Synced(SourceKind::Services),
            Event::Synced(SourceKind::Slices),
            Event::Synced(SourceKind::Pods),
            Event::Synced(SourceKind::ServiceCidrs),
        ])
    }

    /// What the sources tell of a step's objects.
    pub(crate) fn step_events(&mut self, step: &Step) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        for object in &step.objects {
            self.object(object.clone(), &mut events)?;
        }
        for (name, slice) in &step.slices {
            let object = slice_object(name, slice).with_context(|| format!("slice {name}"))?;
            self.object(object, &mut events)?;
        }
        for deleted in &step.delete {
            events.push(deletion(deleted)?);
        }
        Ok(events)
    }

    pub(crate) fn object(&mut self, mut object: Value, events: &mut Vec<Event>) -> Result<()> {
        let kind = object.get("kind").and_then(Value::as_str).context("an object without kind")?.to_owned();
        let metadata = object.get_mut("metadata").and_then(Value::as_object_mut).context("metadata is missing")?;
        let default = if ["Node", "ServiceCIDR"].contains(&kind.as_str()) { "" } else { DEFAULT_NAMESPACE };
        let namespace = metadata.entry("namespace").or_insert_with(|| json!(default)).as_str().unwrap_or_default();
        let namespace = namespace.to_owned();
        let name = metadata.get("name").and_then(Value::as_str).context("metadata.name is missing")?.to_owned();
        let read = match kind.as_str() {
            "Service" => typed::<core::Service>(object).map(|object| {
                let key = ServiceName::new(namespace.as_str(), name.as_str());
                told(ingest::reduce_service(&object), key, Event::Service, events);
            }),
            "EndpointSlice" => typed(object).map(|object| self.slice(&object, events)),
            "Endpoints" => typed(object).map(|object| {
                ingest::slices_of_endpoints(&object).iter().for_each(|slice| self.slice(slice, events));
            }),
            "Node" => typed::<core::Node>(object)
                .map(|object| told(ingest::reduce_node(&object), name.as_str().into(), Event::Node, events)),
            "Pod" => typed::<core::Pod>(object).map(|object| {
                told(ingest::reduce_pod(&object), ServiceName::of_pod(&namespace, &name), Event::Pod, events);
            }),
            "ServiceCIDR" => typed::<networking::ServiceCIDR>(object).map(|object| {
                told(ingest::reduce_service_cidr(&object), name.as_str().into(), Event::ServiceCidr, events);
            }),
            other => bail!("objects of kind {other} do nothing"),
        };
        // As the sources do: what was sent of it before stays valid.
        if let Err(error) = read {
            let kind = KINDS.into_iter().find(|it| *it == kind).context("invariant: the kind is known")?;
            let object = ObjectRef { kind, namespace: namespace.into(), name: name.into() };
            let got = format!("{error:#}");
            let skip = Skip { object, field: String::new(), got, reason: SkipReason::Malformed };
            events.push(Event::Skipped(vec![skip]));
        }
        Ok(())
    }

    fn slice(&mut self, object: &discovery::EndpointSlice, events: &mut Vec<Event>) {
        let metadata = &object.metadata;
        let key = SliceKey {
            namespace: metadata.namespace.as_deref().unwrap_or_default().into(),
            name: metadata.name.as_deref().unwrap_or_default().into(),
        };
        told(ingest::reduce_slice(object, &mut self.names), key, Event::Slice, events);
    }
}

/// The kinds that a scenario may hold.
const KINDS: [&str; 6] = ["Service", "EndpointSlice", "Endpoints", "Node", "Pod", "ServiceCIDR"];

/// The events of one object. One that is not to be programmed is as good as gone.
fn told<T: Keyed>(reduced: Reduced<T>, key: T::Key, event: fn(Change<T>) -> Event, events: &mut Vec<Event>) {
    events.push(event(reduced.value.map_or(Change::Deleted(key), Change::Applied)));
    if !reduced.skips.is_empty() {
        events.push(Event::Skipped(reduced.skips));
    }
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T> {
    Ok(serde_json::from_value(value)?)
}

/// `Kind/name` or `Kind/namespace/name`.
pub(crate) fn deletion(text: &str) -> Result<Event> {
    let parts: Vec<&str> = text.split('/').collect();
    let (kind, namespace, name) = match parts[..] {
        [kind, name] => (kind, DEFAULT_NAMESPACE, name),
        [kind, namespace, name] => (kind, namespace, name),
        _ => bail!("delete: expected Kind/name, got {text:?}"),
    };
    Ok(match kind {
        "Service" => Event::Service(Change::Deleted(ServiceName::new(namespace, name))),
        "EndpointSlice" => Event::Slice(Change::Deleted(SliceKey { namespace: namespace.into(), name: name.into() })),
        "Pod" => Event::Pod(Change::Deleted(ServiceName::of_pod(namespace, name))),
        "Node" => Event::Node(Change::Deleted(name.into())),
        "ServiceCIDR" => Event::ServiceCidr(Change::Deleted(name.into())),
        other => bail!("delete: kind {other} is not read"),
    })
}

/// The EndpointSlice that a `slices:` entry means.
fn slice_object(name: &str, spec: &SliceSpec) -> Result<Value> {
    let (namespace, service) = spec.of.split_once('/').unwrap_or((DEFAULT_NAMESPACE, &spec.of));
    let endpoints = spec.endpoints.iter().map(|text| endpoint(text)).collect::<Result<Vec<_>>>()?;
    let v6 = spec.endpoints.first().is_some_and(|text| text.contains(':'));
    let mut labels: serde_json::Map<String, Value> =
        spec.labels.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    labels.insert(ingest::SERVICE_NAME_LABEL.to_owned(), json!(service));
    let mut ports = Vec::new();
    for (name, port) in &spec.ports {
        let text = port.as_str().map_or_else(|| port.to_string(), str::to_owned);
        let (number, protocol) = text.split_once('/').unwrap_or((&text, "tcp"));
        let number: i32 = number.parse().with_context(|| format!("port {text:?}"))?;
        ports.push(json!({"name": name, "port": number, "protocol": protocol.to_uppercase()}));
    }
    Ok(json!({
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "addressType": if v6 { "IPv6" } else { "IPv4" },
        "ports": ports,
        "endpoints": endpoints,
    }))
}

/// `ADDRESS [NODE] [unready|terminating|draining] [zone=Z] [hint-zone=Z] [hint-node=N]`.
fn endpoint(text: &str) -> Result<Value> {
    let mut words = text.split_whitespace();
    let address = words.next().context("an endpoint without address")?;
    let mut conditions = json!({"ready": true, "serving": true, "terminating": false});
    let mut endpoint = json!({"addresses": [address]});
    let (mut zones, mut nodes) = (Vec::new(), Vec::new());
    for word in words {
        match (word, word.split_once('=')) {
            ("unready", _) => conditions = json!({"ready": false, "serving": false, "terminating": false}),
            // Goes, and still answers.
            ("draining", _) => conditions = json!({"ready": false, "serving": true, "terminating": true}),
            ("terminating", _) => conditions = json!({"ready": false, "serving": false, "terminating": true}),
            (_, Some(("zone", zone))) => endpoint["zone"] = json!(zone),
            (_, Some(("hint-zone", zone))) => zones.push(json!({"name": zone})),
            (_, Some(("hint-node", node))) => nodes.push(json!({"name": node})),
            (_, Some(_)) => bail!("endpoint {text:?}: unknown word {word:?}"),
            (node, None) => endpoint["nodeName"] = json!(node),
        }
    }
    endpoint["conditions"] = conditions;
    if !zones.is_empty() || !nodes.is_empty() {
        endpoint["hints"] = json!({"forZones": zones, "forNodes": nodes});
    }
    Ok(endpoint)
}
