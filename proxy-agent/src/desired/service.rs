//! [`ServiceDesired`]: everything that one Service should have in the maps, with names in place of ids.

use std::net::IpAddr;

use proxy_common::abi::{Algorithm, BACKEND_CLUSTER_SET, BACKEND_LOCAL_SET, EmptySet, FrontendKind, ServiceKey};

use crate::{
    dataplane::MapFamily,
    model::{ServiceName, ServicePortName},
};
use proxy_common::net::{V4, V6};

/// A Pod with host ports has the same, under [`ServiceName::of_pod`].
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceDesired {
    pub name: ServiceName,
    /// Creation in unix seconds: the older Service wins a conflict.
    pub created: Option<i64>,
    /// Known addresses, also without a port that could be programmed: an unknown port is refused there.
    pub cluster_ips: Vec<IpAddr>,
    pub ports: Vec<PortDesired>,
    /// What is not programmed, and why.
    pub warnings: Vec<Warning>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct PortDesired {
    pub name: ServicePortName,
    /// Session affinity timeout; 0 = none.
    pub affinity_s: u32,
    pub algorithm: Algorithm,
    pub v4: PortFamily<V4>,
    pub v6: PortFamily<V6>,
}

/// One service-port in one family. Without frontends there is nothing to write.
#[derive(Clone, Debug, PartialEq)]
pub struct PortFamily<F: MapFamily> {
    pub frontends: Vec<Frontend<F>>,
    /// Every serving endpoint, by address and port.
    pub backends: Vec<PortBackend<F>>,
    /// Network and prefix length; consulted for frontends with `source_ranges`.
    pub source_ranges: Vec<(F::Addr, u8)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Frontend<F: MapFamily> {
    pub key: ServiceKey<F>,
    pub kind: FrontendKind,
    /// For clients that are pods of this node or the node itself.
    pub internal: SetKind,
    /// For all other clients.
    pub external: SetKind,
    pub source_ranges: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PortBackend<F: MapFamily> {
    pub addr: F::Addr,
    pub port: u16,
    /// Bits `BACKEND_*`. With weight 0 it is in no set.
    pub flags: u8,
    pub weight: u16,
}

/// Which of the two endpoint sets of a service-port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetKind {
    Cluster,
    Local,
}

/// A part of a Service that is left out. The Service's other parts are programmed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Warning {
    #[error("{0} is in no range of the external addresses that are allowed; it is not programmed")]
    ExternalNotAllowed(IpAddr),
    #[error("{0} cannot be an external or load balancer address; it is not programmed")]
    ForbiddenAddress(IpAddr),
}

impl Warning {
    /// A metric label, which never changes.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Warning::ExternalNotAllowed(_) => "not-allowed",
            Warning::ForbiddenAddress(_) => "forbidden-address",
        }
    }
}

impl SetKind {
    /// The bit of a backend that belongs to the set.
    #[must_use]
    pub fn member_bit(self) -> u8 {
        match self {
            SetKind::Cluster => BACKEND_CLUSTER_SET,
            SetKind::Local => BACKEND_LOCAL_SET,
        }
    }
}

impl<F: MapFamily> Default for PortFamily<F> {
    fn default() -> Self {
        Self { frontends: Vec::new(), backends: Vec::new(), source_ranges: Vec::new() }
    }
}

impl<F: MapFamily> PortFamily<F> {
    /// Whether a backend belongs to the set.
    pub fn members(&self, set: SetKind) -> impl Iterator<Item = &PortBackend<F>> {
        self.backends.iter().filter(move |backend| backend.flags & set.member_bit() != 0)
    }

    /// What happens to a new flow if the set is empty: dropped only where other nodes have endpoints.
    #[must_use]
    pub fn when_empty(&self, set: SetKind) -> EmptySet {
        match set {
            SetKind::Local if self.members(SetKind::Cluster).next().is_some() => EmptySet::Drop,
            SetKind::Local | SetKind::Cluster => EmptySet::Refuse,
        }
    }
}
