//! The agent: waits to be the node's one writer, loads the kernel programs, and follows sources and node until it is told to
//! end. The dataplane works on without it. Called by `weir agent`.

mod attachment;
mod config;
mod loads;
mod lock;
mod memory;
mod retired;
mod run;
mod sockets;
mod state;

pub use config::{AgentConfig, Source};
pub use lock::Role;
pub use run::run;
