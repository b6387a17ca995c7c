//! Scenarios: files that hold Kubernetes objects, packets and what is expected of them, and the machines that play them.
//! docs/testing.md describes the format. Reading order: file.rs, run.rs, model.rs, kernel.rs.
//!
//! The agent's code up to the maps, and the decision code of proxy-common, run here in this process.

#[cfg(test)]
mod cells;
mod control;
mod evict;
mod expect;
mod file;
mod flows;
mod frame;
mod hop;
mod kernel;
mod model;
mod node;
mod notation;
mod objects;
mod programs;
mod raw;
mod rewrite;
mod run;
mod sandbox;
mod tables;

pub(crate) use control::Control;
pub use expect::{Expectation, Outcome};
pub use file::{NodeSpec, Scenario};
pub(crate) use frame::{build, checksums_are_right, describe, ether_type, tuple_of};
pub use hop::{Hook, Hop, Place};
pub use kernel::KernelMachine;
pub(crate) use kernel::{TCX_NEXT, skb_context};
pub use model::ModelMachine;
pub use node::SimulatedNode;
pub(crate) use notation::{Extras, FragmentSpec, PacketSpec};
pub(crate) use objects::{ObjectReader, deletion};
pub(crate) use raw::Raw;
pub(crate) use run::hex;
pub use run::{Machine, play};
pub use sandbox::in_private_netns;
