//! What the kernel's maps should hold, as a pure function of the snapshot and the node's facts.
//!
//! [`build_desired`] is called for each touched Service, [`build_host_ports`] for each Pod with host ports; `reconcile` gives ids to what it returns and writes it.

mod build;
pub mod endpoints;
mod host_ports;
mod service;

pub use build::{Facts, build_desired};
pub use host_ports::build_host_ports;
pub use service::{Frontend, PortBackend, PortDesired, PortFamily, ServiceDesired, SetKind, Warning};
