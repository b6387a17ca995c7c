//! The resource types that the double serves.

/// One row of what `kubectl api-resources` would print.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Resource {
    /// Empty for the core group.
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) plural: &'static str,
    pub(super) kind: &'static str,
    pub(super) namespaced: bool,
}

const fn row(group: &'static str, plural: &'static str, kind: &'static str, namespaced: bool) -> Resource {
    Resource { group, version: "v1", plural, kind, namespaced }
}

pub(super) static RESOURCES: [Resource; 9] = [
    row("", "services", "Service", true),
    row("", "nodes", "Node", false),
    row("", "namespaces", "Namespace", false),
    row("", "pods", "Pod", true),
    row("", "endpoints", "Endpoints", true),
    row("", "events", "Event", true),
    row("discovery.k8s.io", "endpointslices", "EndpointSlice", true),
    row("networking.k8s.io", "servicecidrs", "ServiceCIDR", false),
    row("events.k8s.io", "events", "Event", true),
];

impl Resource {
    pub(super) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }
}

pub(super) fn by_type(api_version: &str, kind: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|row| row.kind == kind && row.api_version() == api_version)
}

/// The first of the kind; only Event exists twice, and both rows share their objects (see `store`).
pub(super) fn by_kind(kind: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|row| row.kind == kind)
}

pub(super) fn by_path(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|row| row.group == group && row.version == version && row.plural == plural)
}
