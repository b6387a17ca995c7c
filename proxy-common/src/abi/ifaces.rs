//! IFACES: interface index -> what the packets that come in there are.

use super::map_types;
use crate::net::{Ipv4, Ipv6};

#[repr(u32)]
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

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Iface {
    pub role: IfaceRole,
    /// Bytes, without the link header.
    pub mtu: u32,
    /// The node's address on that link, or the node's primary address if the link has none; zero if the node has none.
    pub addr_v4: Ipv4,
    pub addr_v6: Ipv6,
}

map_types!(Iface = 28);
