//! What stands in the BPF maps: keys, values, names and capacities. Changing a layout here means a new [`ABI_VERSION`] and
//! a new docs/maps.md in the same commit.
//!
//! All structs are `repr(C)` without padding. Addresses are octets as on the wire; ports and all other integers are in host
//! byte order, so that `bpftool map dump` prints the numbers that people know.

mod addresses;
mod affinity;
mod backends;
mod config;
mod flows;
mod fragments;
mod ifaces;
mod loads;
mod reasons;
mod services;
mod sets;
mod sockets;

pub use addresses::{
    ADDR_CLUSTER_IP, ADDR_EXTERNAL, ADDR_NODE, ADDR_NODEPORT, ADDR_RETIRED, ADDR_VANISHED, AddressInfo,
};
pub use affinity::{AffinityBy, AffinityKey, AffinityValue};
pub use backends::{BACKEND_CLUSTER_SET, BACKEND_DIRECT, BACKEND_IS_LOCAL, BACKEND_LOCAL_SET, Backend, BackendState};
pub use config::{
    CONFIG_CONNECT_HOST, CONFIG_CONNECT_PODS, CONFIG_DRY_RUN, CONFIG_IPV4, CONFIG_IPV6, CONFIG_MASQUERADE_ALL, Cidr,
    Config, MAX_SERVICE_CIDRS, ServiceCidrs, SocketEnding, Switches,
};
pub(crate) use flows::mix;
pub use flows::{
    FLOW_COUNTED, FLOW_HAIRPIN, FLOW_OWN, FLOW_SNAT, FLOW_UNCONFIRMED, Flow, FlowKey, FlowKind, FlowState, SnatEntry,
};
pub use fragments::{FragEntry, FragKey};
pub use ifaces::{IFACE_STRICT, Iface, IfaceRole, LOOPBACK};
pub use loads::{SockCookie, SockLoad};
pub use reasons::{Action, REASON_SLOTS, Reason, VerdictRecord};
pub use services::{
    Algorithm, FrontendKind, PortName, SERVICE_EXTERNAL_LOCAL, SERVICE_INTERNAL_LOCAL, SERVICE_SOURCE_RANGES, Service,
    ServiceKey, SourceRangeKey,
};
pub use sets::{EmptySet, EndpointSet, RingSlot};
pub use sockets::{SockDirection, SockKey, SockPeer};

/// The layout of everything in this module. Part of the pin path.
pub const ABI_VERSION: u32 = 1 + NEXT;

/// The build that tests upgrade to differs in `Flow`: a field more, one less, one wider.
const NEXT: u32 = cfg!(feature = "abi-next") as u32;

/// Map names, as given to the kernel (at most 15 characters) and as file names below the pin directory.
pub mod names {
    pub const ADDRS_V4: &str = "ADDRS_V4";
    pub const ADDRS_V6: &str = "ADDRS_V6";
    pub const SERVICES_V4: &str = "SERVICES_V4";
    pub const SERVICES_V6: &str = "SERVICES_V6";
    pub const SETS: &str = "SETS";
    pub const RINGS: &str = "RINGS";
    pub const BACKENDS_V4: &str = "BACKENDS_V4";
    pub const BACKENDS_V6: &str = "BACKENDS_V6";
    pub const CONNTRACK_V4: &str = "CONNTRACK_V4";
    pub const CONNTRACK_V6: &str = "CONNTRACK_V6";
    pub const SNAT_V4: &str = "SNAT_V4";
    pub const SNAT_V6: &str = "SNAT_V6";
    pub const NEW_FLOWS_V4: &str = "NEW_FLOWS_V4";
    pub const NEW_FLOWS_V6: &str = "NEW_FLOWS_V6";
    pub const NEW_SNAT_V4: &str = "NEW_SNAT_V4";
    pub const NEW_SNAT_V6: &str = "NEW_SNAT_V6";
    pub const FRAGS_V4: &str = "FRAGS_V4";
    pub const FRAGS_V6: &str = "FRAGS_V6";
    pub const AFFINITY: &str = "AFFINITY";
    pub const SRC_RANGES_V4: &str = "SRC_RANGES_V4";
    pub const SRC_RANGES_V6: &str = "SRC_RANGES_V6";
    pub const SOCK_REVNAT_V4: &str = "SOCK_REVNAT_V4";
    pub const SOCK_REVNAT_V6: &str = "SOCK_REVNAT_V6";
    pub const IFACES: &str = "IFACES";
    pub const SWITCHES: &str = "SWITCHES";
    pub const PORT_NAMES: &str = "PORT_NAMES";
    pub const COUNTERS: &str = "COUNTERS";
    pub const VERDICT: &str = "VERDICT";
    pub const CURSORS: &str = "CURSORS";
    pub const LOADS_V4: &str = "LOADS_V4";
    pub const LOADS_V6: &str = "LOADS_V6";
    pub const SOCK_LOADS: &str = "SOCK_LOADS";
    pub const SCRATCH_V4: &str = "SCRATCH_V4";
    pub const SCRATCH_V6: &str = "SCRATCH_V6";

    /// Every map that is pinned, i.e. outlives the agent.
    pub const PINNED: [&str; 32] = [
        ADDRS_V4,
        ADDRS_V6,
        SERVICES_V4,
        SERVICES_V6,
        SETS,
        RINGS,
        BACKENDS_V4,
        BACKENDS_V6,
        CONNTRACK_V4,
        CONNTRACK_V6,
        SNAT_V4,
        SNAT_V6,
        NEW_FLOWS_V4,
        NEW_FLOWS_V6,
        NEW_SNAT_V4,
        NEW_SNAT_V6,
        FRAGS_V4,
        FRAGS_V6,
        AFFINITY,
        SRC_RANGES_V4,
        SRC_RANGES_V6,
        SOCK_REVNAT_V4,
        SOCK_REVNAT_V6,
        IFACES,
        SWITCHES,
        PORT_NAMES,
        COUNTERS,
        VERDICT,
        CURSORS,
        LOADS_V4,
        LOADS_V6,
        SOCK_LOADS,
    ];
}

/// Default map capacities, in entries. Each is a flag of the agent.
pub mod capacity {
    pub const ADDRS: usize = 65_536;
    pub const SERVICES: usize = 131_072;
    pub const SETS: usize = 131_072;
    pub const RINGS: usize = 524_288;
    pub const BACKENDS: usize = 262_144;
    pub const CONNTRACK: usize = 262_144;
    pub const SNAT: usize = 131_072;
    pub const NEW_FLOWS: usize = 65_536;
    pub const NEW_SNAT: usize = 32_768;
    pub const FRAGS: usize = 8_192;
    pub const AFFINITY: usize = 65_536;
    pub const SRC_RANGES: usize = 16_384;
    pub const SOCK_REVNAT: usize = 131_072;
    pub const IFACES: usize = 4_096;
    pub const PORT_NAMES: usize = 65_536;
}

/// Asserts sizes (so that a padding hole or a changed field cannot go unseen) and lets aya copy the types to and from maps.
macro_rules! map_types {
    ($($type:ty = $size:literal),* $(,)?) => {$(
        const _: () = assert!(size_of::<$type>() == $size);
        #[cfg(feature = "user")]
        // SAFETY: `repr(C)` without padding (the size is asserted above); enums in it are only ever written by Weir of the
        // same ABI_VERSION, which is part of the pin path.
        unsafe impl aya::Pod for $type {}
    )*};
}
pub(crate) use map_types;

map_types!(crate::net::Ipv4 = 4, crate::net::Ipv6 = 16);
