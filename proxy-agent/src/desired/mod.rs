//! What the kernel's maps should hold, as a pure function of the snapshot and the node's facts.
//!
//! [`build_desired`] is called for each touched Service; `reconcile` gives ids to what it returns and writes it.

mod build;
pub mod endpoints;
mod service;

pub use build::{Facts, build_desired};
pub use service::{Frontend, PortBackend, PortDesired, PortFamily, ServiceDesired, SetKind, Warning};
