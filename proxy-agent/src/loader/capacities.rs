//! Map capacities: flags of `weir agent`, defaults from the map layouts.

use proxy_common::abi::{capacity, names};

/// Entries per map; where a map exists for both families, for each.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Map capacities (entries, per address family)")]
pub struct Capacities {
    /// Service addresses and the node's own.
    #[arg(long = "addresses-max", default_value_t = capacity::ADDRS as u32, value_parser = clap::value_parser!(u32).range(1..))]
    pub addresses: u32,
    /// Frontends: one for each address, port and protocol.
    #[arg(long = "services-max", default_value_t = capacity::SERVICES as u32, value_parser = clap::value_parser!(u32).range(1..))]
    pub services: u32,
    /// Endpoint sets: at most two for each Service port and family.
    #[arg(long = "sets-max", default_value_t = capacity::SETS as u32, value_parser = clap::value_parser!(u32).range(1..))]
    pub sets: u32,
    /// Slots of endpoint sets: one for each endpoint in a set.
    #[arg(long = "rings-max", default_value_t = capacity::RINGS as u32, value_parser = clap::value_parser!(u32).range(1..))]
    pub rings: u32,
    /// Endpoints: one for each Service port, address and port.
    #[arg(long = "backends-max", default_value_t = capacity::BACKENDS as u32, value_parser = clap::value_parser!(u32).range(1..))]
    pub backends: u32,
    /// Tracked flows: two or three entries for each connection.
    #[arg(long = "conntrack-max", default_value_t = capacity::CONNTRACK as u32, value_parser = clap::value_parser!(u32).range(1..))]
    pub conntrack: u32,
    /// Flows whose source address is translated.
    #[arg(long = "snat-max", default_value_t = capacity::SNAT as u32, value_parser = clap::value_parser!(u32).range(1..))]
    pub snat: u32,
    /// Flows whose client has not answered yet: two or three entries each. A flood of SYNs fills this table alone.
    #[arg(long = "new-flows-max", default_value_t = capacity::NEW_FLOWS as u32, value_parser = clap::value_parser!(u32).range(1..))]
    pub new_flows: u32,
    /// The same, of flows whose source address is translated.
    #[arg(long = "new-snat-max", default_value_t = capacity::NEW_SNAT as u32, value_parser = clap::value_parser!(u32).range(1..))]
    pub new_snat: u32,
    /// Datagrams in fragments.
    #[arg(long = "frags-max", default_value_t = capacity::FRAGS as u32, value_parser = clap::value_parser!(u32).range(1..))]
    pub frags: u32,
    /// Clients remembered for session affinity.
    #[arg(long = "affinity-max", default_value_t = capacity::AFFINITY as u32, value_parser = clap::value_parser!(u32).range(1..))]
    pub affinity: u32,
    /// Source ranges of load balancers.
    #[arg(long = "source-ranges-max", default_value_t = capacity::SRC_RANGES as u32, value_parser = clap::value_parser!(u32).range(1..))]
    pub source_ranges: u32,
    /// Sockets that were translated at connect time and can ask for their peer.
    #[arg(long = "sockets-max", default_value_t = capacity::SOCK_REVNAT as u32, value_parser = clap::value_parser!(u32).range(1..))]
    pub sockets: u32,
    /// Network interfaces.
    #[arg(long = "interfaces-max", default_value_t = capacity::IFACES as u32, value_parser = clap::value_parser!(u32).range(1..))]
    pub interfaces: u32,
    /// Service ports.
    #[arg(long = "port-names-max", default_value_t = capacity::PORT_NAMES as u32, value_parser = clap::value_parser!(u32).range(1..))]
    pub port_names: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            addresses: capacity::ADDRS as u32,
            services: capacity::SERVICES as u32,
            sets: capacity::SETS as u32,
            rings: capacity::RINGS as u32,
            backends: capacity::BACKENDS as u32,
            conntrack: capacity::CONNTRACK as u32,
            snat: capacity::SNAT as u32,
            new_flows: capacity::NEW_FLOWS as u32,
            new_snat: capacity::NEW_SNAT as u32,
            frags: capacity::FRAGS as u32,
            affinity: capacity::AFFINITY as u32,
            source_ranges: capacity::SRC_RANGES as u32,
            sockets: capacity::SOCK_REVNAT as u32,
            interfaces: capacity::IFACES as u32,
            port_names: capacity::PORT_NAMES as u32,
        }
    }
}

impl Capacities {
    /// `None` for maps whose size is part of their layout.
    pub fn of(&self, map: &str) -> Option<u32> {
        Some(match map {
            names::ADDRS_V4 | names::ADDRS_V6 => self.addresses,
            names::SERVICES_V4 | names::SERVICES_V6 => self.services,
            names::SETS | names::CURSORS => self.sets,
            names::RINGS => self.rings,
            names::BACKENDS_V4 | names::BACKENDS_V6 | names::LOADS_V4 | names::LOADS_V6 => self.backends,
            names::CONNTRACK_V4 | names::CONNTRACK_V6 => self.conntrack,
            names::SNAT_V4 | names::SNAT_V6 => self.snat,
            names::NEW_FLOWS_V4 | names::NEW_FLOWS_V6 => self.new_flows,
            names::NEW_SNAT_V4 | names::NEW_SNAT_V6 => self.new_snat,
            names::FRAGS_V4 | names::FRAGS_V6 => self.frags,
            names::AFFINITY => self.affinity,
            names::SRC_RANGES_V4 | names::SRC_RANGES_V6 => self.source_ranges,
            names::SOCK_REVNAT_V4 | names::SOCK_REVNAT_V6 | names::SOCK_LOADS => self.sockets,
            names::IFACES => self.interfaces,
            names::PORT_NAMES => self.port_names,
            _ => return None,
        })
    }
}
