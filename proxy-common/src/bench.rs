//! What the programs of `bench packet` (proxy-ebpf/src/bench) and the rig share. No program of the product uses it.

use crate::abi::map_types;
use crate::net::{Family, Ipv4, Ipv6, V4, V6};

/// As much of a frame as is written anew before each run: headers of Ethernet, IPv6 and TCP without options.
pub const HEADERS_LEN: usize = 74;
/// The driver's return value when there was nothing to call.
pub const NO_TARGET: i32 = 77;

/// What the floor program does, one after the other.
pub const FLOOR_STEPS: [&str; 7] =
    ["parse", "hash look-up", "LRU look-up", "checksums for the address", "address", "checksum for the port", "port"];

/// A field of the i-th packet: `base + ((i >> shift) & mask)`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    pub base: u32,
    pub shift: u32,
    pub mask: u32,
}

/// DRIVER: the packets to come.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Driver {
    /// How many packets were made so far.
    pub next: u32,
    /// The i-th packet belongs to flow `(i & wrap) * scramble & wrap`: with an odd number each flow has its turn, and not in the
    /// order in which the entries lie in memory.
    pub wrap: u32,
    pub scramble: u32,
    pub made: u32,
    /// Low words of the addresses.
    pub src: Field,
    pub dst: Field,
    pub src_port: Field,
    pub dst_port: Field,
    /// Behind it, the IP header is aligned.
    pub zero: [u8; 2],
    pub headers: [u8; HEADERS_LEN],
}

/// What the floor program finds in its connection table; about as large as the product's.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FloorFlow<F: Family> {
    pub backend: F::Addr,
    pub backend_port: u16,
    pub zero: u16,
    pub rest: [u32; 11],
}

map_types!(Driver = 140, FloorFlow<V4> = 52, FloorFlow<V6> = 64);
const _: () = assert!(size_of::<Ipv4>() == 4 && size_of::<Ipv6>() == 16);
