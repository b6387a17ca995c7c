//! What the watches make of objects, without a server: the random tests of the agent say what changes, and take the events.

use serde_json::Value;

use super::{listing::Listing, tolerant::Tolerant, watched::Watched};
use crate::{
    ingest::Interner,
    model::{EndpointSlice, Event, Node, Pod, Service, ServiceCidr},
};

/// An object as the client reads it.
#[derive(Clone, Debug)]
pub(crate) struct Read(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Service(Tolerant<Service>),
    Slice(Tolerant<EndpointSlice>),
    Node(Tolerant<Node>),
    Pod(Tolerant<Pod>),
    ServiceCidr(Tolerant<ServiceCidr>),
}

/// What a server says.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Said {
    Applied,
    Deleted,
}

/// The state of all watches.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    services: Listing<Service>,
    slices: Listing<EndpointSlice>,
    nodes: Listing<Node>,
    pods: Listing<Pod>,
    service_cidrs: Listing<ServiceCidr>,
    names: Interner,
}

impl Read {
    pub(crate) fn new(kind: &str, object: Value) -> Self {
        fn tolerant<T: Watched>(object: Value) -> Tolerant<T> {
            serde_json::from_value(object).expect("always readable")
        }
        Self(match kind {
            "Service" => Kind::Service(tolerant(object)),
            "EndpointSlice" => Kind::Slice(tolerant(object)),
            "Node" => Kind::Node(tolerant(object)),
            "Pod" => Kind::Pod(tolerant(object)),
            _ => Kind::ServiceCidr(tolerant(object)),
        })
    }

    /// Whether it has the shape of its kind. If not, what was heard of it before stays valid.
    pub(crate) fn is_readable(&self) -> bool {
        match &self.0 {
            Kind::Service(it) => it.object.is_ok(),
            Kind::Slice(it) => it.object.is_ok(),
            Kind::Node(it) => it.object.is_ok(),
            Kind::Pod(it) => it.object.is_ok(),
            Kind::ServiceCidr(it) => it.object.is_ok(),
        }
    }
}

impl Heard {
    /// The events that the watch of its kind sends.
    pub(crate) fn hear(&mut self, said: Said, object: &Read) -> Vec<Event> {
        let names = &mut self.names;
        match &object.0 {
            Kind::Service(it) => hear(&mut self.services, said, it, names),
            Kind::Slice(it) => hear(&mut self.slices, said, it, names),
            Kind::Node(it) => hear(&mut self.nodes, said, it, names),
            Kind::Pod(it) => hear(&mut self.pods, said, it, names),
            Kind::ServiceCidr(it) => hear(&mut self.service_cidrs, said, it, names),
        }
    }

    /// Every kind is listed again.
    pub(crate) fn relist<'a>(&mut self, objects: impl Iterator<Item = &'a Read>) -> Vec<Event> {
        self.services.begin();
        self.slices.begin();
        self.nodes.begin();
        self.pods.begin();
        self.service_cidrs.begin();
        let mut events: Vec<Event> = objects.flat_map(|object| self.hear(Said::Applied, object)).collect();
        events.extend(self.services.finish().into_iter().map(Event::Service));
        events.extend(self.slices.finish().into_iter().map(Event::Slice));
        events.extend(self.nodes.finish().into_iter().map(Event::Node));
        events.extend(self.pods.finish().into_iter().map(Event::Pod));
        events.extend(self.service_cidrs.finish().into_iter().map(Event::ServiceCidr));
        events
    }
}

fn hear<T: Watched>(listing: &mut Listing<T>, said: Said, object: &Tolerant<T>, names: &mut Interner) -> Vec<Event> {
    let Some(key) = T::key_of(&object.metadata) else { return Vec::new() };
    if let Said::Deleted = said {
        return listing.delete(key).map(T::event).into_iter().collect();
    }
    let (change, skips) = match &object.object {
        Ok(reduced) => {
            let mut value = reduced.value.clone();
            if let Some(value) = &mut value {
                value.share(names);
            }
            (listing.apply(key.clone(), value), reduced.skips.clone())
        }
        Err(skip) => {
            listing.keep(key.clone());
            (None, vec![skip.clone()])
        }
    };
    let skips = Some(listing.new_skips(key, skips)).filter(|skips| !skips.is_empty()).map(Event::Skipped);
    change.map(T::event).into_iter().chain(skips).collect()
}
