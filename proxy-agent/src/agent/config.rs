//! What the command line asks of the agent, checked and resolved.

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use ipnet::IpNet;

use crate::{
    health::HealthConfig,
    loader::{Capacities, ConnectHooks, Placement},
    node::{NodePortAddresses, RoleRules, ports::PortRange},
    sockets::SocketsConfig,
    sources::{kubernetes::KubernetesConfig, manifests::ManifestConfig},
};

#[derive(Debug)]
pub enum Source {
    Manifests(ManifestConfig),
    Kubernetes(KubernetesConfig),
}

#[derive(Debug)]
pub struct AgentConfig {
    pub node_name: String,
    pub source: Source,
    pub node_ports: NodePortAddresses,
    pub roles: RoleRules,
    /// Known Service ranges; empty if none was named, and the source's ServiceCIDR objects count.
    pub service_cidrs: Vec<IpNet>,
    /// Empty: external addresses are accepted from everywhere.
    pub external_ranges: Vec<IpNet>,
    /// On the node's own addresses.
    pub protected_ports: Vec<RangeInclusive<u16>>,
    pub masquerade_all: bool,
    /// Slots of a Maglev table, a prime.
    pub maglev_table_size: u32,
    pub snat_ports: PortRange,
    pub connect_hooks: ConnectHooks,
    /// None: the root of the cgroup2 hierarchy.
    pub cgroup_root: Option<PathBuf>,
    pub pin_root: PathBuf,
    pub placement: Placement,
    pub capacities: Capacities,
    pub sockets: SocketsConfig,
    pub health: HealthConfig,
    /// How long changes are collected.
    pub sync_delay: Duration,
}
