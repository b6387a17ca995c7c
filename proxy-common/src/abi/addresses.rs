//! ADDRS_V4, ADDRS_V6: destination address -> what it is. The first look-up of a packet; a miss means "not ours".

use super::map_types;

/// The ClusterIP of a Service: an unknown port is refused.
pub const ADDR_CLUSTER_IP: u32 = 1;
/// A load balancer VIP or an external IP: an unknown port is not ours.
pub const ADDR_EXTERNAL: u32 = 2;
/// An address of this node.
pub const ADDR_NODE: u32 = 4;
/// NodePorts are served here (nodePortAddresses).
pub const ADDR_NODEPORT: u32 = 8;
/// An endpoint that left while its sockets could not be ended had it: packets of sockets that connect-time translation sent
/// there are steered anew. To everybody else it is an address like any other.
pub const ADDR_VANISHED: u32 = 16;
/// Nobody's any more, alone of all bits: connections in CONNTRACK go on, everything else passes.
pub const ADDR_RETIRED: u32 = 32;

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddressInfo {
    /// Bits `ADDR_*`.
    pub flags: u32,
}

map_types!(AddressInfo = 4);
