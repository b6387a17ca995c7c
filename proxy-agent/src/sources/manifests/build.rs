//! All objects of all files to the model, and the events that lead from one state of it to the next.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{allocate::Allocations, defaults, document::Object, pods::slices_of_pods};
use crate::{
    ingest::{self, Interner, Reduced, SERVICE_NAME_LABEL, ZONE_LABEL},
    model::{Change, EndpointSlice, Event, Keyed, Node, Pod, Service, ServiceCidr, ServiceName, Skip, SliceKey},
};

/// What the manifests say, in the model's terms.
#[derive(Clone, Debug, Default)]
pub(super) struct World {
    services: BTreeMap<ServiceName, Service>,
    slices: BTreeMap<SliceKey, EndpointSlice>,
    nodes: BTreeMap<Arc<str>, Node>,
    pods: BTreeMap<ServiceName, Pod>,
    service_cidrs: BTreeMap<Arc<str>, ServiceCidr>,
    pub(super) skips: Vec<Skip>,
    /// Findings that are no malformed field: objects given twice, no free address.
    pub(super) warnings: Vec<String>,
}

/// Kind, namespace, name: of two objects with the same, the later one counts, as with `kubectl apply`.
type Identity = (&'static str, String, String);

/// The state that the objects, in the order of their files, amount to.
pub(super) fn build<'a>(
    objects: impl Iterator<Item = &'a Object>,
    allocations: &mut Allocations,
    names: &mut Interner,
    host_ports: bool,
) -> World {
    let mut world = World::default();
    let mut all = unique(objects, &mut world.warnings);
    let mut services: Vec<&mut core::Service> = all
        .values_mut()
        .filter_map(|object| match object {
            Object::Service(service) => Some(&mut **service),
            _ => None,
        })
        .collect();
    for name in allocations.assign(&mut services) {
        world.warnings.push(format!("Service {name}: no free address is left in the Service CIDRs"));
    }
    for slice in derived_slices(&all) {
        world.add_slice(&slice, names);
    }
    for object in all.values() {
        match object {
            Object::Service(service) => world.add(ingest::reduce_service(service), |world| &mut world.services),
            Object::Slice(slice) => world.add_slice(slice, names),
            Object::Node(node) => world.add(ingest::reduce_node(node), |world| &mut world.nodes),
            Object::Pod(pod) if host_ports => world.add(ingest::reduce_pod(pod), |world| &mut world.pods),
            Object::ServiceCidr(range) => {
                world.add(ingest::reduce_service_cidr(range), |world| &mut world.service_cidrs);
            }
            Object::Endpoints(_) | Object::Pod(_) => {}
        }
    }
    world
}

/// The events that lead from `old` to `new`; none if they are equal.
pub(super) fn changes(old: &World, new: &World) -> Vec<Event> {
    let nodes = differences(&old.nodes, &new.nodes).map(Event::Node);
    let services = differences(&old.services, &new.services).map(Event::Service);
    let slices = differences(&old.slices, &new.slices).map(Event::Slice);
    let pods = differences(&old.pods, &new.pods).map(Event::Pod);
    let ranges = differences(&old.service_cidrs, &new.service_cidrs).map(Event::ServiceCidr);
    nodes.chain(ranges).chain(services).chain(slices).chain(pods).collect()
}

fn differences<'a, T>(
    old: &'a BTreeMap<T::Key, T>,
    new: &'a BTreeMap<T::Key, T>,
) -> impl Iterator<Item = Change<T>> + 'a
where
    T: Keyed + Clone + PartialEq,
{
    let gone = old.keys().filter(|key| !new.contains_key(key)).cloned().map(Change::Deleted);
    let changed = new.iter().filter(|(key, value)| old.get(key) != Some(value));
    gone.chain(changed.map(|(_, value)| Change::Applied(value.clone())))
}

impl World {
    fn add<T: Keyed>(&mut self, reduced: Reduced<T>, place: impl Fn(&mut World) -> &mut BTreeMap<T::Key, T>) {
        self.skips.extend(reduced.skips);
        if let Some(value) = reduced.value {
            place(self).insert(value.key(), value);
        }
    }

    fn add_slice(&mut self, slice: &discovery::EndpointSlice, names: &mut Interner) {
        self.add(ingest::reduce_slice(slice, names), |world| &mut world.slices);
    }
}

fn unique<'a>(objects: impl Iterator<Item = &'a Object>, warnings: &mut Vec<String>) -> BTreeMap<Identity, Object> {
    let mut all = BTreeMap::new();
    for object in objects {
        let mut object = object.clone();
        defaults::fill_in(&mut object);
        let identity = identity(&object);
        let (kind, namespace, name) = &identity;
        let text = if namespace.is_empty() { format!("{kind} {name}") } else { format!("{kind} {namespace}/{name}") };
        if all.insert(identity, object).is_some() {
            warnings.push(format!("{text} is given more than once; the last one counts"));
        }
    }
    all
}

fn identity(object: &Object) -> Identity {
    let (kind, metadata) = object.kind_and_metadata();
    // Neither has a namespace, whatever its manifest says.
    let namespace =
        if ["Node", "ServiceCIDR"].contains(&kind) { String::new() } else { text(metadata.namespace.as_ref()) };
    (kind, namespace, text(metadata.name.as_ref()))
}

fn text(field: Option<&String>) -> String {
    field.cloned().unwrap_or_default()
}

/// The slices that controllers would write in a cluster: for Endpoints without an EndpointSlice, and for
/// selecting Services that have neither.
fn derived_slices(all: &BTreeMap<Identity, Object>) -> Vec<discovery::EndpointSlice> {
    let mut provided: BTreeSet<(String, String)> = BTreeSet::new();
    let mut pods = Vec::new();
    let mut zones = BTreeMap::new();
    for object in all.values() {
        match object {
            Object::Slice(slice) => {
                let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME_LABEL));
                provided.extend(service.map(|service| (text(slice.metadata.namespace.as_ref()), service.clone())));
            }
            Object::Pod(pod) => pods.push(&**pod),
            Object::Node(node) => zones.extend(zone_of(&node.metadata)),
            Object::Service(_) | Object::Endpoints(_) | Object::ServiceCidr(_) => {}
        }
    }
    let mut derived = Vec::new();
    let key = |metadata: &ObjectMeta| (text(metadata.namespace.as_ref()), text(metadata.name.as_ref()));
    for object in all.values() {
        if let Object::Endpoints(endpoints) = object
            && provided.insert(key(&endpoints.metadata))
        {
            derived.extend(ingest::slices_of_endpoints(endpoints));
        }
    }
    for object in all.values() {
        if let Object::Service(service) = object
            && !provided.contains(&key(&service.metadata))
        {
            derived.extend(slices_of_pods(service, &pods, &zones));
        }
    }
    derived
}

fn zone_of(metadata: &ObjectMeta) -> Option<(&str, &str)> {
    let zone = metadata.labels.as_ref()?.get(ZONE_LABEL)?;
    Some((metadata.name.as_deref()?, zone))
}
