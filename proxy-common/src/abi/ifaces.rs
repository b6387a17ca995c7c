//! IFACES: interface index -> what the packets that come in there are.

use super::map_types;
use crate::net::{Ipv4, Ipv6};

#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IfaceRole {
    None = 0,
    /// Leads to pods of this node: their traffic is internal.
    Pod = 1,
    /// Leads out of the node.
    Uplink = 2,
    /// Leads to other nodes' pods by encapsulation.
    Overlay = 3,
}

/// In every network namespace.
pub const LOOPBACK: u32 = 1;

/// A packet must come in by the link that leads to its source (IPv4: net.ipv4.conf.*.rp_filter is 1).
pub const IFACE_STRICT: u8 = 1;

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Iface {
    pub role: IfaceRole,
    /// Bits `IFACE_*`.
    pub flags: u8,
    pub zero: [u8; 2],
    /// Bytes, without the link header.
    pub mtu: u32,
    /// The node's address on that link, or the node's primary address if the link has none; zero if the node has none.
    pub addr_v4: Ipv4,
    pub addr_v6: Ipv6,
}

map_types!(Iface = 28);
