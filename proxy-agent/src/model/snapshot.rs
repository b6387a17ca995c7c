//! The present state of everything the sources told, and which Services an event touches.
//!
//! The agent's main loop owns one [`Snapshot`], applies events to it and rebuilds the desired state of
//! the touched Services only.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    event::{Change, Event, SourceKind},
    names::ServiceName,
    objects::{EndpointSlice, Node, NodeFacts, Pod, Service, ServiceCidr, SliceKey},
};

/// What one event (or several, see [`Touched::merge`]) made stale.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Services, and Pods with host ports under the names that [`ServiceName::of_pod`] gives them.
    pub services: BTreeSet<ServiceName>,
    /// The own Node changed: addresses, zone or eligibility. Every Service may be affected.
    pub node: bool,
    /// The ranges of ClusterIPs changed, or are known for the first time.
    pub service_cidrs: bool,
}

#[derive(Clone, Debug)]
pub struct Snapshot {
    node_name: Arc<str>,
    node: Option<Node>,
    services: BTreeMap<ServiceName, Service>,
    /// Boxed, since a tree has room for eleven, and most Services have one slice.
    slices: BTreeMap<ServiceName, BTreeMap<Arc<str>, Box<EndpointSlice>>>,
    /// To which Service a slice belonged when it was last seen.
    slice_owner: HashMap<SliceKey, ServiceName>,
    pods: BTreeMap<ServiceName, Pod>,
    service_cidrs: BTreeMap<Arc<str>, ServiceCidr>,
    synced: BTreeSet<SourceKind>,
}

impl Touched {
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && !self.node && !self.service_cidrs
    }

    pub fn merge(&mut self, other: Touched) {
        self.services.extend(other.services);
        self.node |= other.node;
        self.service_cidrs |= other.service_cidrs;
    }
}

impl Snapshot {
    /// An empty snapshot for the node of this name; events about other nodes are ignored.
    pub fn new(node_name: impl Into<Arc<str>>) -> Self {
        Self {
            node_name: node_name.into(),
            node: None,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            slice_owner: HashMap::new(),
            pods: BTreeMap::new(),
            service_cidrs: BTreeMap::new(),
            synced: BTreeSet::new(),
        }
    }

    /// Takes over one event. An object that is equal to what is known already touches nothing.
    pub fn apply(&mut self, event: Event) -> Touched {
        let mut touched = Touched::default();
        match event {
            Event::Service(change) => touched.services.extend(self.apply_service(change)),
            Event::Slice(Change::Applied(slice)) => self.insert_slice(slice, &mut touched.services),
            Event::Slice(Change::Deleted(key)) => touched.services.extend(self.remove_slice(&key)),
            Event::Node(change) => touched.node = self.apply_node(change),
            Event::Pod(change) => touched.services.extend(self.apply_pod(change)),
            Event::ServiceCidr(Change::Applied(range)) => {
                let known = self.service_cidrs.insert(range.name.clone(), range.clone());
                touched.service_cidrs = known.as_ref() != Some(&range);
            }
            Event::ServiceCidr(Change::Deleted(name)) => {
                touched.service_cidrs = self.service_cidrs.remove(&name).is_some();
            }
            Event::Synced(kind) => touched.service_cidrs = self.synced.insert(kind) && kind == SourceKind::ServiceCidrs,
            Event::Skipped(_) => {}
        }
        touched
    }

    /// True when every kind has been listed once: only then may anything be deleted.
    pub fn is_synced(&self) -> bool {
        let kinds = [SourceKind::Services, SourceKind::Slices, SourceKind::Node, SourceKind::Pods];
        kinds.iter().all(|kind| self.synced.contains(kind))
    }

    /// The kinds that were listed in full at least once.
    pub fn synced(&self) -> &BTreeSet<SourceKind> {
        &self.synced
    }

    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.services.get(name)
    }

    /// All Services, by name.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Service> {
        self.services.values()
    }

    pub fn pod(&self, name: &ServiceName) -> Option<&Pod> {
        self.pods.get(name)
    }

    /// The Pods of this node that have host ports, by name.
    pub fn pods(&self) -> impl ExactSizeIterator<Item = &Pod> {
        self.pods.values()
    }

    /// Where ClusterIPs are allocated; None until it was listed.
    pub fn service_cidrs(&self) -> Option<Vec<IpNet>> {
        let listed = self.synced.contains(&SourceKind::ServiceCidrs);
        listed.then(|| self.service_cidrs.values().flat_map(|range| range.cidrs.iter().copied()).collect())
    }

    /// The slices of one Service, by slice name.
    pub fn slices_of(&self, service: &ServiceName) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.get(service).into_iter().flat_map(BTreeMap::values).map(Box::as_ref)
    }

    /// Every slice, also those whose Service is not (yet) known, by Service and slice name.
    pub fn slices(&self) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.values().flat_map(BTreeMap::values).map(Box::as_ref)
    }

    /// The own Node, once seen.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// Name and zone of the own node; the name is known also before the object is.
    pub fn node_facts(&self) -> NodeFacts {
        NodeFacts { name: self.node_name.clone(), zone: self.node.as_ref().and_then(|node| node.zone.clone()) }
    }

    fn apply_service(&mut self, change: Change<Service>) -> Option<ServiceName> {
        match change {
            Change::Applied(service) => {
                if self.services.get(&service.name) == Some(&service) {
                    return None;
                }
                let name = service.name.clone();
                self.services.insert(name.clone(), service);
                Some(name)
            }
            Change::Deleted(name) => self.services.remove(&name).map(|_| name),
        }
    }

    /// A Pod of another node, or without host ports, is as good as none.
    fn apply_pod(&mut self, change: Change<Pod>) -> Option<ServiceName> {
        match change {
            Change::Applied(pod) if pod.node == self.node_name && !pod.host_ports.is_empty() => {
                if self.pods.get(&pod.name) == Some(&pod) {
                    return None;
                }
                let name = pod.name.clone();
                self.pods.insert(name.clone(), pod);
                Some(name)
            }
            Change::Applied(Pod { name, .. }) | Change::Deleted(name) => self.pods.remove(&name).map(|_| name),
        }
    }

    fn insert_slice(&mut self, slice: EndpointSlice, touched: &mut BTreeSet<ServiceName>) {
        let key = slice.key();
        if self.slice_owner.get(&key).is_some_and(|owner| *owner != slice.service) {
            touched.extend(self.remove_slice(&key));
        }
        let owner = slice.service.clone();
        let of_service = self.slices.entry(owner.clone()).or_default();
        if of_service.get(&slice.name).is_some_and(|known| **known == slice) {
            return;
        }
        of_service.insert(slice.name.clone(), Box::new(slice));
        self.slice_owner.insert(key, owner.clone());
        touched.insert(owner);
    }

    fn remove_slice(&mut self, key: &SliceKey) -> Option<ServiceName> {
        let owner = self.slice_owner.remove(key)?;
        if let Some(of_service) = self.slices.get_mut(&owner) {
            of_service.remove(&key.name);
            if of_service.is_empty() {
                self.slices.remove(&owner);
            }
        }
        Some(owner)
    }

    fn apply_node(&mut self, change: Change<Node>) -> bool {
        let next = match change {
            Change::Applied(node) if node.name == self.node_name => Some(node),
            Change::Deleted(name) if name == self.node_name => None,
            Change::Applied(_) | Change::Deleted(_) => return false,
        };
        let changed = self.node != next;
        self.node = next;
        changed
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::abi::Algorithm;

    use super::*;
    use crate::model::{Family, HostPort, Protocol, TrafficPolicy};

    fn service(name: &str) -> Service {
        Service {
            name: ServiceName::new("default", name),
            created: None,
            cluster_ips: vec!["10.96.0.10".parse().expect("an address")],
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            source_ranges: Vec::new(),
            ports: Vec::new(),
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity_timeout_s: None,
            health_check_node_port: None,
            traffic_distribution: None,
            algorithm: Algorithm::Random,
        }
    }

    fn slice(name: &str, service: &str) -> EndpointSlice {
        EndpointSlice {
            name: name.into(),
            service: ServiceName::new("default", service),
            family: Family::V4,
            ports: Vec::new(),
            endpoints: Vec::new(),
            last_change: Default::default(),
        }
    }

    fn node(name: &str, zone: Option<&str>) -> Node {
        Node {
            name: name.into(),
            internal_ips: Vec::new(),
            external_ips: Vec::new(),
            zone: zone.map(Into::into),
            deleting: false,
            leaving: false,
        }
    }

    fn touched(names: &[&str]) -> Touched {
        let services = names.iter().map(|name| ServiceName::new("default", *name)).collect();
        Touched { services, ..Touched::default() }
    }

    #[test]
    fn an_equal_object_touches_nothing() {
        let mut snapshot = Snapshot::new("node-a");
        assert_eq!(snapshot.apply(Event::Service(Change::Applied(service("web")))), touched(&["web"]));
        assert_eq!(snapshot.apply(Event::Service(Change::Applied(service("web")))), touched(&[]));
        assert_eq!(snapshot.apply(Event::Slice(Change::Applied(slice("web-1", "web")))), touched(&["web"]));
        assert_eq!(snapshot.apply(Event::Slice(Change::Applied(slice("web-1", "web")))), touched(&[]));
    }

    #[test]
    fn a_slice_that_changes_its_service_touches_both() {
        let mut snapshot = Snapshot::new("node-a");
        snapshot.apply(Event::Slice(Change::Applied(slice("s", "old"))));
        assert_eq!(snapshot.apply(Event::Slice(Change::Applied(slice("s", "new")))), touched(&["new", "old"]));
        assert_eq!(snapshot.slices_of(&ServiceName::new("default", "old")).count(), 0);
        assert_eq!(snapshot.slices_of(&ServiceName::new("default", "new")).count(), 1);
        assert_eq!(snapshot.slices().count(), 1);
    }

    #[test]
    fn deletions_touch_what_was_known_only() {
        let mut snapshot = Snapshot::new("node-a");
        snapshot.apply(Event::Service(Change::Applied(service("web"))));
        snapshot.apply(Event::Slice(Change::Applied(slice("web-1", "web"))));
        let key = slice("web-1", "web").key();
        assert_eq!(snapshot.apply(Event::Slice(Change::Deleted(key.clone()))), touched(&["web"]));
        assert_eq!(snapshot.apply(Event::Slice(Change::Deleted(key))), touched(&[]));
        let name = ServiceName::new("default", "web");
        assert_eq!(snapshot.apply(Event::Service(Change::Deleted(name.clone()))), touched(&["web"]));
        assert_eq!(snapshot.apply(Event::Service(Change::Deleted(name))), touched(&[]));
    }

    #[test]
    fn only_the_own_node_counts() {
        let mut snapshot = Snapshot::new("node-a");
        assert!(!snapshot.apply(Event::Node(Change::Applied(node("node-b", Some("z2"))))).node);
        assert_eq!(snapshot.node_facts().zone, None);
        assert!(snapshot.apply(Event::Node(Change::Applied(node("node-a", Some("z1"))))).node);
        assert!(!snapshot.apply(Event::Node(Change::Applied(node("node-a", Some("z1"))))).node);
        assert_eq!(snapshot.node_facts().zone.as_deref(), Some("z1"));
        assert!(snapshot.apply(Event::Node(Change::Deleted("node-a".into()))).node);
        assert_eq!(snapshot.node_facts(), NodeFacts { name: "node-a".into(), zone: None });
    }

    #[test]
    fn synced_when_every_kind_was_listed() {
        let mut snapshot = Snapshot::new("node-a");
        for (kind, all) in [
            (SourceKind::Services, false),
            (SourceKind::Slices, false),
            (SourceKind::Pods, false),
            (SourceKind::Node, true),
        ] {
            assert!(snapshot.apply(Event::Synced(kind)).is_empty());
            assert_eq!(snapshot.is_synced(), all, "after {kind:?}");
        }
    }

    #[test]
    fn pods_of_this_node_with_host_ports_count_and_ranges_once_they_are_listed() {
        let mut snapshot = Snapshot::new("node-a");
        let pod = |node: &str, ports: &[u16]| Pod {
            name: ServiceName::of_pod("default", "web"),
            created: None,
            node: node.into(),
            addresses: Vec::new(),
            host_ports: ports
                .iter()
                .map(|port| HostPort { host_ip: None, host_port: *port, protocol: Protocol::Tcp, port: 80 })
                .collect(),
        };
        let name = || BTreeSet::from([ServiceName::of_pod("default", "web")]);
        let mut apply = |pod: Pod| snapshot.apply(Event::Pod(Change::Applied(pod))).services;
        assert!(apply(pod("node-b", &[8080])).is_empty());
        assert_eq!(apply(pod("node-a", &[8080])), name());
        assert!(apply(pod("node-a", &[8080])).is_empty());
        assert_eq!(apply(pod("node-a", &[])), name());

        let range = ServiceCidr { name: "kubernetes".into(), cidrs: vec!["10.96.0.0/12".parse().expect("a CIDR")] };
        assert!(snapshot.apply(Event::ServiceCidr(Change::Applied(range.clone()))).service_cidrs);
        assert!(!snapshot.apply(Event::ServiceCidr(Change::Applied(range.clone()))).service_cidrs);
        assert_eq!(snapshot.service_cidrs(), None);
        assert!(snapshot.apply(Event::Synced(SourceKind::ServiceCidrs)).service_cidrs);
        assert_eq!(snapshot.service_cidrs(), Some(range.cidrs));
        assert!(snapshot.apply(Event::ServiceCidr(Change::Deleted("kubernetes".into()))).service_cidrs);
        assert_eq!(snapshot.service_cidrs(), Some(Vec::new()));
    }
}
