//! BACKENDS_V4, BACKENDS_V6: backend id -> endpoint. One per (service-port, address, port), for every serving endpoint.

use super::map_types;
use crate::net::{Address, Family, V4, V6};

#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackendState {
    /// Never used, or free for another endpoint.
    Free = 0,
    Serving = 1,
}

/// The endpoint's node is this one.
pub const BACKEND_IS_LOCAL: u8 = 1;
/// On this node and reached by an interface that carries our hook, so that its replies pass us: the client's address is kept.
pub const BACKEND_DIRECT: u8 = 2;
/// In the set of the whole cluster.
pub const BACKEND_CLUSTER_SET: u8 = 4;
/// In the set of local endpoints.
pub const BACKEND_LOCAL_SET: u8 = 8;

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backend<F: Family> {
    pub addr: F::Addr,
    pub port: u16,
    /// Bits `BACKEND_*`.
    pub flags: u8,
    pub state: BackendState,
    /// Grows each time the endpoint stops serving or the id goes to another one: UDP flows that carry an older value select
    /// again.
    pub generation: u32,
    /// Service-port id.
    pub service: u32,
    /// Its share of new flows, in proportion to the others'.
    pub weight: u16,
    pub zero: u16,
}

impl<F: Family> Backend<F> {
    /// A zeroed element.
    pub const FREE: Self = Self {
        addr: F::Addr::ZERO,
        port: 0,
        flags: 0,
        state: BackendState::Free,
        generation: 0,
        service: 0,
        weight: 0,
        zero: 0,
    };
}

map_types!(Backend<V4> = 20, Backend<V6> = 32);
