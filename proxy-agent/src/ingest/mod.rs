//! Kubernetes API objects to the model: the only place that knows how the API spells things.
//!
//! Called by both sources. Nothing in here can fail as a whole: a part that makes no sense is left out
//! and reported as a [`Skip`], the rest of the object is used.

mod address;
mod endpoints;
mod intern;
mod node;
mod pod;
mod schedule;
mod service;
mod service_cidr;
mod slice;

pub use address::{parse_ip, parse_range};
pub use endpoints::slices_of_endpoints;
pub use intern::Interner;
pub use node::reduce_node;
pub use pod::reduce_pod;
pub use service::reduce_service;
pub use service_cidr::reduce_service_cidr;
pub use slice::{reduce_slice, share_names};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::model::{ObjectRef, Skip, SkipReason};

/// A Service with this label belongs to another proxy.
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// A slice with this label belongs to a headless Service.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// Names the Service that a slice belongs to.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// On a slice: when that changed which it was last written for.
pub const LAST_CHANGE_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// How a Service wants its backends chosen.
pub const ALGORITHM_ANNOTATION: &str = "weir.dev/algorithm";
/// How much of the new flows the endpoints of an EndpointSlice get.
pub const WEIGHT_ANNOTATION: &str = "weir.dev/weight";

/// The longest name of a namespace, a Service or a port, in bytes (RFC 1123 label).
const MAX_NAME_LEN: usize = 63;

/// What an object amounts to: `None` if there is nothing to program (headless, ExternalName, another
/// proxy's, of an unknown family, or without a usable name).
#[derive(Clone, Debug)]
pub struct Reduced<T> {
    pub value: Option<T>,
    pub skips: Vec<Skip>,
}

impl<T> Reduced<T> {
    fn nothing() -> Self {
        Self { value: None, skips: Vec::new() }
    }
}

/// Collects what had to be left out of one object.
struct Skips {
    object: ObjectRef,
    list: Vec<Skip>,
}

impl Skips {
    fn of(kind: &'static str, metadata: &ObjectMeta) -> Self {
        let object = ObjectRef {
            kind,
            namespace: metadata.namespace.as_deref().unwrap_or_default().into(),
            name: metadata.name.as_deref().unwrap_or_default().into(),
        };
        Self { object, list: Vec::new() }
    }

    fn add(&mut self, field: impl Into<String>, got: impl Into<String>, reason: SkipReason) {
        self.list.push(Skip { object: self.object.clone(), field: field.into(), got: got.into(), reason });
    }

    fn nothing<T>(self) -> Reduced<T> {
        Reduced { value: None, skips: self.list }
    }

    fn with<T>(self, value: T) -> Reduced<T> {
        Reduced { value: Some(value), skips: self.list }
    }
}

fn has_label(metadata: &ObjectMeta, label: &str) -> bool {
    metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(label))
}

fn annotation<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

fn label<'a>(metadata: &'a ObjectMeta, label: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(label).map(String::as_str)
}

/// Namespace and name, where the object has both.
fn namespaced(metadata: &ObjectMeta) -> Option<(&str, &str)> {
    let namespace = metadata.namespace.as_deref().filter(|it| !it.is_empty())?;
    let name = metadata.name.as_deref().filter(|it| !it.is_empty())?;
    Some((namespace, name))
}

/// True for a name that the maps can hold and that cannot be taken for another: no API server admits any other.
fn is_usable_name(name: &str) -> bool {
    let unusable =
        |character: char| matches!(character, '/' | ':') || character.is_control() || character.is_whitespace();
    name.len() <= MAX_NAME_LEN && !name.contains(unusable)
}

/// A port number that can be used.
fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}
