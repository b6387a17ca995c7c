//! SOCK_REVNAT_V4, SOCK_REVNAT_V6: what the connect-time hooks did to a socket.

use super::map_types;
use crate::net::{Family, V4, V6};

#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum SockDirection {
    None = 0,
    /// The key's address is a frontend, the value a backend (UDP: later datagrams of the socket go to the same one).
    Request = 1,
    /// The key's address is a backend, the value the frontend to show instead.
    Reply = 2,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SockKey<F: Family> {
    /// Socket cookie, low and high half.
    pub cookie: [u32; 2],
    pub addr: F::Addr,
    pub port: u16,
    pub protocol: u8,
    pub direction: SockDirection,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SockPeer<F: Family> {
    pub addr: F::Addr,
    pub port: u16,
    pub zero: u16,
    pub backend_id: u32,
    pub generation: u32,
    /// Low half of the cookie: an LRU element may be reused between look-up and read.
    pub check: u32,
}

map_types!(SockKey<V4> = 16, SockKey<V6> = 28, SockPeer<V4> = 20, SockPeer<V6> = 32);
