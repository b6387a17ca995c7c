//! The kernel's maps as the reconciler sees them: one write at a time, and everything read back.
//!
//! [`Dataplane`] has two implementations: [`KernelMaps`] over pinned BPF maps, and [`FakeMaps`] over
//! plain collections that can be told to fail. `reconcile` calls both in the same way.

mod actual;
mod batch;
mod error;
mod fake;
mod family;
mod in_use;
mod kernel;
mod loads;
mod op;
mod sets;

pub use actual::{Actual, FamilyTables, SourceRange};
pub use error::{DataplaneError, capacity_flag};
pub use fake::{FakeMaps, Injection};
pub use family::{FamilyNames, MapFamily};
pub use in_use::{frontend_of, frontends_in_use};
pub use kernel::KernelMaps;
pub use loads::{Counted, Written, correct_loads};
pub(crate) use op::port_name_text;
pub use op::{FamilyOp, MapOp};

use proxy_common::abi::capacity;

/// The maps that the agent writes.
pub trait Dataplane {
    /// One write. An error means that nothing was changed, except that a ring range may be written in part:
    /// nothing points at it yet.
    fn apply(&mut self, op: &MapOp) -> Result<(), DataplaneError>;
    /// Reads every map that the agent writes.
    fn read_all(&self) -> Result<Actual, DataplaneError>;
    /// How many entries the maps hold; fixed while they live.
    fn capacity(&self) -> Capacity;
}

/// Entries per map. Maps that exist once per family have the same size in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub addrs: usize,
    pub services: usize,
    pub sets: usize,
    pub rings: usize,
    pub backends: usize,
    pub src_ranges: usize,
    pub ifaces: usize,
    pub port_names: usize,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            addrs: capacity::ADDRS,
            services: capacity::SERVICES,
            sets: capacity::SETS,
            rings: capacity::RINGS,
            backends: capacity::BACKENDS,
            src_ranges: capacity::SRC_RANGES,
            ifaces: capacity::IFACES,
            port_names: capacity::PORT_NAMES,
        }
    }
}
