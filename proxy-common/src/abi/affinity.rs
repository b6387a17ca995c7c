//! AFFINITY: service-port and client -> the backend it was given last (`sessionAffinity: ClientIP`).

use super::map_types;

/// What identifies the client, and which BACKENDS map the remembered id belongs to.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum AffinityBy {
    None = 0,
    AddressV4 = 4,
    AddressV6 = 6,
    /// Connect time: the client's address is not known yet, its network namespace is.
    NetnsV4 = 104,
    NetnsV6 = 106,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct AffinityKey {
    /// Service-port id.
    pub service: u32,
    pub by: AffinityBy,
    /// The address (IPv4: first word) or the netns cookie (first two words).
    pub client: [u32; 4],
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AffinityValue {
    pub backend: u32,
    pub generation: u32,
    /// Seconds since boot.
    pub last_used_s: u32,
}

map_types!(AffinityKey = 24, AffinityValue = 12);
