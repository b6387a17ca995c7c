//! Who owns a frontend. Several Services may ask for one NodePort or external address; the oldest that may have it
//! gets it, the others get a named conflict and take over when it goes. All questions are answered by look-ups
//! for the addresses concerned; nothing here grows with the number of Services.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
};

use proxy_common::abi::FrontendKind;

use super::{few::Few, node::NodeAddress};
use crate::{
    dataplane::MapFamily,
    desired::{PortFamily, ServiceDesired},
    model::{Protocol, ServiceName, ServicePortName},
};

/// An address (unspecified for NodePorts), a port and a protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendId {
    pub ip: IpAddr,
    pub port: u16,
    pub protocol: u8,
}

/// A frontend that a Service asks for and does not get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub port: ServicePortName,
    pub frontend: FrontendId,
    pub reason: ConflictReason,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConflictReason {
    #[error("it belongs to the older {0}")]
    TakenBy(ServicePortName),
    #[error("the address is the ClusterIP of {0}")]
    ClusterIpOf(ServiceName),
    #[error("the address is an endpoint of {0}")]
    EndpointOf(ServiceName),
    #[error("the address is this node's own and the port is protected (--protected-node-ports)")]
    ProtectedPort,
    #[error("it belongs to {0}, and Services come before host ports")]
    ServiceFirst(ServicePortName),
}

/// The order is that of right: Services before host ports, older first, then by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claimant {
    host_port: bool,
    created: i64,
    port: ServicePortName,
    external: bool,
}

impl ConflictReason {
    /// A metric label, which never changes.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            ConflictReason::TakenBy(_) => "taken",
            ConflictReason::ClusterIpOf(_) => "cluster-ip",
            ConflictReason::EndpointOf(_) => "endpoint",
            ConflictReason::ProtectedPort => "protected-port",
            ConflictReason::ServiceFirst(_) => "service-first",
        }
    }
}

/// Everything that one Service asks for or occupies.
#[derive(Default)]
struct ClaimSet {
    frontends: BTreeSet<(FrontendId, Claimant)>,
    cluster_ips: BTreeSet<IpAddr>,
    endpoints: BTreeSet<(IpAddr, u16, u8)>,
}

#[derive(Clone, Debug)]
pub(super) struct Claims {
    frontends: HashMap<FrontendId, Few<Claimant>>,
    /// Services with a frontend (not a NodePort) at this address.
    by_address: HashMap<IpAddr, Few<(ServiceName, FrontendId)>>,
    cluster_ips: HashMap<IpAddr, Few<ServiceName>>,
    endpoints: HashMap<IpAddr, Few<(ServiceName, u16, u8)>>,
    /// Pods that ask for this port and protocol of the node, with each address.
    host_ports: HashMap<(u16, u8), Few<(ServiceName, FrontendId)>>,
    node_addresses: BTreeSet<NodeAddress>,
    protected: Vec<RangeInclusive<u16>>,
}

impl Claims {
    pub(super) fn new(protected: Vec<RangeInclusive<u16>>) -> Self {
        Self {
            frontends: HashMap::new(),
            by_address: HashMap::new(),
            cluster_ips: HashMap::new(),
            endpoints: HashMap::new(),
            host_ports: HashMap::new(),
            node_addresses: BTreeSet::new(),
            protected,
        }
    }

    /// Replaces what the Service asked for before. Returns the other Services that may win or lose by it.
    pub(super) fn replace(
        &mut self,
        name: &ServiceName,
        old: Option<&ServiceDesired>,
        new: Option<&ServiceDesired>,
    ) -> BTreeSet<ServiceName> {
        let old = old.map(ClaimSet::of).unwrap_or_default();
        let new = new.map(ClaimSet::of).unwrap_or_default();
        let mut affected = BTreeSet::new();
        for (id, claimant) in old.frontends.difference(&new.frontends) {
            remove(&mut self.frontends, *id, claimant);
            remove(&mut self.by_address, id.ip, &(name.clone(), *id));
            if claimant.host_port {
                remove(&mut self.host_ports, (id.port, id.protocol), &(name.clone(), *id));
            }
            self.claimants(id, &mut affected);
        }
        for (id, claimant) in new.frontends.difference(&old.frontends) {
            self.frontends.entry(*id).or_default().insert(claimant.clone());
            if !id.ip.is_unspecified() {
                self.by_address.entry(id.ip).or_default().insert((name.clone(), *id));
            }
            if claimant.host_port {
                self.host_ports.entry((id.port, id.protocol)).or_default().insert((name.clone(), *id));
            }
            self.claimants(id, &mut affected);
        }
        for ip in old.cluster_ips.difference(&new.cluster_ips) {
            remove(&mut self.cluster_ips, *ip, name);
            self.services_at(ip, &mut affected);
        }
        for ip in new.cluster_ips.difference(&old.cluster_ips) {
            self.cluster_ips.entry(*ip).or_default().insert(name.clone());
            self.services_at(ip, &mut affected);
        }
        for (ip, port, protocol) in old.endpoints.difference(&new.endpoints) {
            remove(&mut self.endpoints, *ip, &(name.clone(), *port, *protocol));
            self.services_at(ip, &mut affected);
        }
        for (ip, port, protocol) in new.endpoints.difference(&old.endpoints) {
            self.endpoints.entry(*ip).or_default().insert((name.clone(), *port, *protocol));
            self.services_at(ip, &mut affected);
        }
        affected.remove(name);
        affected
    }

    /// Returns the Services that may win or lose by the change.
    pub(super) fn set_node_addresses(&mut self, addresses: BTreeSet<NodeAddress>) -> BTreeSet<ServiceName> {
        let mut affected = BTreeSet::new();
        for address in self.node_addresses.symmetric_difference(&addresses) {
            self.services_at(&address.ip, &mut affected);
        }
        self.node_addresses = addresses;
        affected
    }

    /// Why `port` does not get the frontend, or None if it does.
    pub(super) fn conflict(&self, port: &ServicePortName, id: FrontendId) -> Option<ConflictReason> {
        let claimants = self.frontends.get(&id)?;
        let mine = claimants.iter().find(|it| it.port == *port)?;
        if let Some(reason) = self.refusal(mine, &id) {
            return Some(reason);
        }
        let winner = claimants.iter().find(|it| self.refusal(it, &id).is_none())?;
        let other = || winner.port.clone();
        (winner.port != *port).then(|| match mine.host_port && !winner.host_port {
            true => ConflictReason::ServiceFirst(other()),
            false => ConflictReason::TakenBy(other()),
        })
    }

    /// Addresses that an external or load balancer IP or a host port must not take over, whoever asks.
    fn refusal(&self, claimant: &Claimant, id: &FrontendId) -> Option<ConflictReason> {
        if !claimant.external && !claimant.host_port {
            return None;
        }
        if claimant.host_port
            && let Some(owner) = self.node_port_at(id)
        {
            return Some(ConflictReason::ServiceFirst(owner.clone()));
        }
        let me = &claimant.port.service;
        if let Some(owner) = self.cluster_ips.get(&id.ip).into_iter().flatten().find(|owner| *owner != me) {
            return Some(ConflictReason::ClusterIpOf(owner.clone()));
        }
        let on_node = claimant.host_port || self.node_address(&id.ip).is_some();
        // On a node address (k3s, kube-vip, bare-metal ingress) only the very port of an endpoint is taken.
        let endpoint =
            self.endpoints.get(&id.ip).into_iter().flatten().find(|(owner, port, protocol)| {
                !on_node || (owner != me && (*port, *protocol) == (id.port, id.protocol))
            });
        if let Some((owner, ..)) = endpoint {
            return Some(ConflictReason::EndpointOf(owner.clone()));
        }
        let is_protected = || self.protected.iter().any(|range| range.contains(&id.port));
        (on_node && is_protected()).then_some(ConflictReason::ProtectedPort)
    }

    fn node_address(&self, ip: &IpAddr) -> Option<&NodeAddress> {
        // At most one of the two is there.
        [false, true].into_iter().find_map(|nodeport| self.node_addresses.get(&NodeAddress { ip: *ip, nodeport }))
    }

    /// The NodePort that is served there: also on loopback addresses, for the node's own sockets.
    fn node_port_at(&self, id: &FrontendId) -> Option<&ServicePortName> {
        let served = id.ip.is_loopback() || self.node_address(&id.ip).is_some_and(|it| it.nodeport);
        let any = match id.ip {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let owners = self.frontends.get(&FrontendId { ip: any, ..*id }).filter(|_| served)?;
        owners.first().map(|owner| &owner.port)
    }

    fn claimants(&self, id: &FrontendId, affected: &mut BTreeSet<ServiceName>) {
        affected.extend(self.frontends.get(id).into_iter().flatten().map(|it| it.port.service.clone()));
        if id.ip.is_unspecified() {
            let pods = self.host_ports.get(&(id.port, id.protocol)).into_iter().flatten();
            affected.extend(pods.map(|(name, _)| name.clone()));
        }
    }

    fn services_at(&self, ip: &IpAddr, affected: &mut BTreeSet<ServiceName>) {
        affected.extend(self.by_address.get(ip).into_iter().flatten().map(|(name, _)| name.clone()));
    }
}

impl ClaimSet {
    fn of(desired: &ServiceDesired) -> Self {
        let mut set = Self { cluster_ips: desired.cluster_ips.iter().copied().collect(), ..Self::default() };
        // A Service of unknown age yields to every other.
        let created = desired.created.unwrap_or(i64::MAX);
        for port in &desired.ports {
            set.add_family(&port.name, created, &port.v4);
            set.add_family(&port.name, created, &port.v6);
        }
        set
    }

    fn add_family<F: MapFamily>(&mut self, name: &ServicePortName, created: i64, family: &PortFamily<F>) {
        for it in &family.frontends {
            let external = matches!(it.kind, FrontendKind::ExternalIp | FrontendKind::LoadBalancer);
            let host_port = it.kind == FrontendKind::HostPort;
            let claimant = Claimant { host_port, created, port: name.clone(), external };
            self.frontends.insert((FrontendId::of::<F>(&it.key), claimant));
        }
        let protocol = name.protocol.number();
        self.endpoints.extend(family.backends.iter().map(|it| (F::to_ip(it.addr), it.port, protocol)));
    }
}

impl FrontendId {
    pub(super) fn of<F: MapFamily>(key: &proxy_common::abi::ServiceKey<F>) -> Self {
        Self { ip: F::to_ip(key.addr), port: key.port, protocol: key.protocol }
    }
}

impl fmt::Display for FrontendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ip.is_unspecified() {
            write!(f, "nodeport{}:{}", if self.ip.is_ipv6() { "6" } else { "" }, self.port)?;
        } else {
            write!(f, "{}", SocketAddr::new(self.ip, self.port))?;
        }
        match Protocol::from_number(self.protocol) {
            Some(protocol) => write!(f, "/{protocol}"),
            None => write!(f, "/{}", self.protocol),
        }
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} does not get {}: {}", self.port, self.frontend, self.reason)
    }
}

fn remove<K: Eq + std::hash::Hash, V: Ord>(index: &mut HashMap<K, Few<V>>, key: K, value: &V) {
    if let Some(values) = index.get_mut(&key) {
        values.remove(value);
        if values.is_empty() {
            index.remove(&key);
        }
    }
}
