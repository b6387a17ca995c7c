//! Service, EndpointSlice, Node, Pod and ServiceCIDR, reduced. `ingest` fills them; every field is already checked.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use proxy_common::abi::Algorithm;

use super::names::{Family, Protocol, ServiceName};

/// Which endpoints a kind of traffic may use (internalTrafficPolicy, externalTrafficPolicy).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrafficPolicy {
    #[default]
    Cluster,
    Local,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePort {
    /// Empty if unnamed.
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
}

/// A Service that is to be programmed (never headless, never ExternalName).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: ServiceName,
    /// Creation in unix seconds: the older Service wins a conflict.
    pub created: Option<i64>,
    pub cluster_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    /// From status.loadBalancer.ingress, without those of ipMode Proxy.
    pub load_balancer_ips: Vec<IpAddr>,
    /// loadBalancerSourceRanges. Empty means that every client is admitted. If every range given was
    /// unreadable, this holds [`Service::admit_nobody`]: a typing error must not open what was closed.
    pub source_ranges: Vec<IpNet>,
    pub ports: Vec<ServicePort>,
    pub internal_policy: TrafficPolicy,
    pub external_policy: TrafficPolicy,
    /// Some(seconds) if sessionAffinity is ClientIP.
    pub affinity_timeout_s: Option<u32>,
    pub health_check_node_port: Option<u16>,
    pub traffic_distribution: Option<Arc<str>>,
    /// From the annotation weir.dev/algorithm.
    pub algorithm: Algorithm,
}

/// One backend address of a slice. Nil conditions are already resolved (rule 4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: IpAddr,
    pub node: Option<Arc<str>>,
    pub zone: Option<Arc<str>>,
    pub zone_hints: Vec<Arc<str>>,
    pub node_hints: Vec<Arc<str>>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// From the slice's annotation weir.dev/weight, else 1. With 0 it gets no new flows.
    pub weight: u16,
}

/// A port of a slice: where the endpoints listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    pub name: Arc<str>,
    /// From the label kubernetes.io/service-name; the slice lies in the same namespace.
    pub service: ServiceName,
    pub family: Family,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<Endpoint>,
    pub last_change: LastChange,
}

/// When the Pod or Service changed that a slice was last written for, in nanoseconds since 1970, if the slice says so. Two slices
/// that differ in this alone are equal.
#[derive(Clone, Copy, Debug, Default)]
pub struct LastChange(pub Option<u64>);

impl PartialEq for LastChange {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for LastChange {}

/// Namespace and name of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceKey {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: Arc<str>,
    /// status.addresses of type InternalIP, in the order of the object.
    pub internal_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    /// The label topology.kubernetes.io/zone.
    pub zone: Option<Arc<str>>,
    /// metadata.deletionTimestamp is set.
    pub deleting: bool,
    /// Carries the taint ToBeDeletedByClusterAutoscaler.
    pub leaving: bool,
}

/// A Pod that asks for ports of its node (rule 20). Others are not remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// See [`ServiceName::of_pod`].
    pub name: ServiceName,
    /// Creation in unix seconds: the older Pod wins a conflict.
    pub created: Option<i64>,
    pub node: Arc<str>,
    /// status.podIPs, at most one of each family.
    pub addresses: Vec<IpAddr>,
    pub host_ports: Vec<HostPort>,
}

/// A port of the node that leads to a port of a Pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// None: all addresses of the node; unspecified: all of its family.
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub protocol: Protocol,
    /// Where the container listens.
    pub port: u16,
}

/// A range from which ClusterIPs are allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    pub name: Arc<str>,
    pub cidrs: Vec<IpNet>,
}

/// What endpoint choice has to know of the node it runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    pub name: Arc<str>,
    pub zone: Option<Arc<str>>,
}

impl Service {
    /// Ranges that contain no client: see [`Service::source_ranges`].
    pub fn admit_nobody() -> Vec<IpNet> {
        // The unspecified addresses are never the source of a flow (RFC 1122 3.2.1.3, RFC 4291 2.5.2).
        vec![
            IpNet::from(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)),
            IpNet::from(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)),
        ]
    }

    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips.iter().copied().find(|ip| Family::of(*ip) == family)
    }
}

impl EndpointSlice {
    pub fn key(&self) -> SliceKey {
        SliceKey { namespace: self.service.namespace.clone(), name: self.name.clone() }
    }
}

impl From<&Node> for NodeFacts {
    fn from(node: &Node) -> Self {
        Self { name: node.name.clone(), zone: node.zone.clone() }
    }
}
