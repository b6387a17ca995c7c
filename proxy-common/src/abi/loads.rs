//! LOADS_V4, LOADS_V6: backend id -> open connections, of backends of Services with [`Algorithm::LeastConnections`]. Programs count up
//! and down, the agent corrects them by the tables (`agent/loads.rs`): flows that are evicted or just stop are not heard of.
//! SOCK_LOADS: cookie of a TCP socket that connect-time translation gave to such a backend.
//!
//! [`Algorithm::LeastConnections`]: super::Algorithm::LeastConnections

use super::map_types;

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SockCookie {
    /// Low and high half.
    pub cookie: [u32; 2],
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SockLoad {
    pub backend: u32,
    /// The backend's generation at selection.
    pub generation: u32,
    /// 4 or 6: which BACKENDS map the id belongs to.
    pub family: u32,
    /// Low half of the cookie: an LRU element may be reused between look-up and read.
    pub check: u32,
}

impl SockCookie {
    #[inline(always)]
    #[must_use]
    pub const fn new(cookie: u64) -> Self {
        Self { cookie: [cookie as u32, (cookie >> 32) as u32] }
    }
}

map_types!(SockCookie = 8, SockLoad = 16);
