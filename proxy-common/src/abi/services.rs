//! SERVICES_V4, SERVICES_V6: frontend -> which endpoints it has. PORT_NAMES: service-port id -> its name, for people.
//! SRC_RANGES_V4, SRC_RANGES_V6: who may use a load balancer VIP.

use super::map_types;
use crate::net::{Family, V4, V6};

/// An address, a port and a protocol that clients call. NodePorts have the address zero.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ServiceKey<F: Family> {
    pub addr: F::Addr,
    pub port: u16,
    pub protocol: u8,
    pub zero: u8,
}

/// What an operator calls the frontend. It changes no decision.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FrontendKind {
    None = 0,
    ClusterIp = 1,
    ExternalIp = 2,
    LoadBalancer = 3,
    NodePort = 4,
    HostPort = 5,
}

/// How a new flow gets its endpoint. What the slots of a ring hold follows from it (see RINGS in docs/maps.md).
#[repr(u8)]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Algorithm {
    #[default]
    Random = 0,
    /// One slot after the other, by the set's element of CURSORS.
    RoundRobin = 1,
    /// The ring is a Maglev table; the client's address chooses the slot, alike on every node.
    Maglev = 2,
    /// The same by the five-tuple.
    MaglevTuple = 3,
    /// Of two slots at random, the one whose backend has fewer connections for its weight.
    LeastConnections = 4,
}

impl Algorithm {
    /// True if every node chooses alike, so that a connection may go on at another node.
    #[inline(always)]
    #[must_use]
    pub const fn is_consistent(self) -> bool {
        matches!(self, Self::Maglev | Self::MaglevTuple)
    }
}

/// Look in SRC_RANGES before anything else.
pub const SERVICE_SOURCE_RANGES: u8 = 1;
/// `internal_set` is the set of local endpoints (else of the whole cluster).
pub const SERVICE_INTERNAL_LOCAL: u8 = 2;
/// `external_set` is the set of local endpoints (else of the whole cluster).
pub const SERVICE_EXTERNAL_LOCAL: u8 = 4;

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Service {
    /// Service-port id: one per namespace, name, port name and protocol; shared by all its frontends.
    pub id: u32,
    /// Index into SETS for clients that are pods of this node or the node itself.
    pub internal_set: u32,
    /// Index into SETS for all other clients.
    pub external_set: u32,
    /// Session affinity timeout; 0 = none.
    pub affinity_s: u32,
    pub kind: FrontendKind,
    pub algorithm: Algorithm,
    /// Bits `SERVICE_*`.
    pub flags: u8,
    pub zero: u8,
}

/// `namespace/name:port`, UTF-8, zero padded. All three are labels of up to 63 bytes (RFC 1123); a longer text is shortened, with a
/// digest at its end.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortName {
    pub text: [u8; 144],
    pub protocol: u8,
    pub zero: [u8; 3],
}

/// The data part of an LPM key: 32 bits of service-port id, then the client's address. A prefix of an address of `n` bits is
/// a key prefix of `32 + n` bits.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SourceRangeKey<F: Family> {
    pub service: u32,
    pub client: F::Addr,
}

map_types!(
    ServiceKey<V4> = 8,
    ServiceKey<V6> = 20,
    Service = 20,
    PortName = 148,
    SourceRangeKey<V4> = 8,
    SourceRangeKey<V6> = 20,
);
