//! The kinds of objects that are watched: which of them, and what becomes of one.

use std::{fmt, sync::Arc};

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::de::DeserializeOwned;

use crate::{
    ingest::{self, HEADLESS_LABEL, Interner, PROXY_NAME_LABEL, Reduced},
    model::{Change, EndpointSlice, Event, Keyed, Node, Pod, Service, ServiceCidr, ServiceName, SliceKey, SourceKind},
};

pub(super) trait Watched: Keyed + Clone + fmt::Debug + Send + Sync + 'static {
    type Object: kube::Resource<DynamicType = ()> + DeserializeOwned;
    const KIND: &'static str;
    const SOURCE: SourceKind;
    /// True if the agent is of use without this kind: then [`Self::MISSING`] says what is not.
    const OPTIONAL: bool = false;
    const MISSING: &'static str = "";

    /// Which objects the server is asked for.
    fn selection(node_name: &str) -> Selection;
    fn key_of(metadata: &ObjectMeta) -> Option<Self::Key>;
    fn reduce(object: &Self::Object) -> Reduced<Self>;
    fn event(change: Change<Self>) -> Event;

    /// Shares texts that repeat from object to object.
    fn share(&mut self, _names: &mut Interner) {}
}

/// Selectors, as the API writes them.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection {
    pub(super) labels: Option<String>,
    pub(super) fields: Option<String>,
}

impl Selection {
    fn labels(selector: String) -> Self {
        Self { labels: Some(selector), fields: None }
    }

    fn fields(selector: String) -> Self {
        Self { labels: None, fields: Some(selector) }
    }
}

impl Watched for Service {
    type Object = core::Service;
    const KIND: &'static str = "Service";
    const SOURCE: SourceKind = SourceKind::Services;

    fn selection(_node_name: &str) -> Selection {
        Selection::labels(format!("!{PROXY_NAME_LABEL}"))
    }

    fn key_of(metadata: &ObjectMeta) -> Option<ServiceName> {
        Some(ServiceName::new(metadata.namespace.as_deref()?, metadata.name.as_deref()?))
    }

    fn reduce(object: &core::Service) -> Reduced<Self> {
        ingest::reduce_service(object)
    }

    fn event(change: Change<Self>) -> Event {
        Event::Service(change)
    }
}

impl Watched for EndpointSlice {
    type Object = discovery::EndpointSlice;
    const KIND: &'static str = "EndpointSlice";
    const SOURCE: SourceKind = SourceKind::Slices;

    fn selection(_node_name: &str) -> Selection {
        Selection::labels(format!("!{HEADLESS_LABEL}"))
    }

    fn key_of(metadata: &ObjectMeta) -> Option<SliceKey> {
        let (namespace, name) = (metadata.namespace.as_deref()?, metadata.name.as_deref()?);
        Some(SliceKey { namespace: namespace.into(), name: name.into() })
    }

    fn reduce(object: &discovery::EndpointSlice) -> Reduced<Self> {
        ingest::reduce_slice(object, &mut Interner::default())
    }

    fn share(&mut self, names: &mut Interner) {
        ingest::share_names(self, names);
    }

    fn event(change: Change<Self>) -> Event {
        Event::Slice(change)
    }
}

impl Watched for Node {
    type Object = core::Node;
    const KIND: &'static str = "Node";
    const SOURCE: SourceKind = SourceKind::Node;

    fn selection(node_name: &str) -> Selection {
        Selection::fields(format!("metadata.name={node_name}"))
    }

    fn key_of(metadata: &ObjectMeta) -> Option<Arc<str>> {
        metadata.name.as_deref().map(Into::into)
    }

    fn reduce(object: &core::Node) -> Reduced<Self> {
        ingest::reduce_node(object)
    }

    fn event(change: Change<Self>) -> Event {
        Event::Node(change)
    }
}

impl Watched for Pod {
    type Object = core::Pod;
    const KIND: &'static str = "Pod";
    const SOURCE: SourceKind = SourceKind::Pods;
    const OPTIONAL: bool = true;
    const MISSING: &'static str = "host ports are not served (--host-ports=false says that this is meant)";

    /// Those of this node. No selector knows host ports; all others are forgotten on arrival.
    fn selection(node_name: &str) -> Selection {
        Selection::fields(format!("spec.nodeName={node_name}"))
    }

    fn key_of(metadata: &ObjectMeta) -> Option<ServiceName> {
        Some(ServiceName::of_pod(metadata.namespace.as_deref()?, metadata.name.as_deref()?))
    }

    fn reduce(object: &core::Pod) -> Reduced<Self> {
        ingest::reduce_pod(object)
    }

    fn event(change: Change<Self>) -> Event {
        Event::Pod(change)
    }
}

impl Watched for ServiceCidr {
    type Object = networking::ServiceCIDR;
    const KIND: &'static str = "ServiceCIDR";
    const SOURCE: SourceKind = SourceKind::ServiceCidrs;
    const OPTIONAL: bool = true;
    const MISSING: &'static str = "addresses of the Service range that no Service has are not dropped (--service-cluster-ip-range names the range)";

    fn selection(_node_name: &str) -> Selection {
        Selection::default()
    }

    fn key_of(metadata: &ObjectMeta) -> Option<Arc<str>> {
        metadata.name.as_deref().map(Into::into)
    }

    fn reduce(object: &networking::ServiceCIDR) -> Reduced<Self> {
        ingest::reduce_service_cidr(object)
    }

    fn event(change: Change<Self>) -> Event {
        Event::ServiceCidr(change)
    }
}
