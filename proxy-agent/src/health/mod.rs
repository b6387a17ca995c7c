//! What others ask of the agent by HTTP: is it alive, may load balancers use the node, how is it doing.
//!
//! `agent::run` starts [`Servers`] before it waits to be the node's one writer, and tells [`Health`] what becomes of updates. Nothing
//! in here reads Kubernetes objects or writes the dataplane's maps.
//!
//! Two agents of a node may listen at once (`listener`). The active one answers from what it knows and posts that in a pinned
//! map (`board`); a standby, and an agent that has not written everything yet, answer from there. So it does not matter
//! whom a question reaches.

mod answer;
mod args;
mod board;
mod checks;
mod drain;
mod forwarding;
mod frame;
mod listener;
mod ports;
mod probe;
mod server;
mod state;
mod told;

pub use args::{HealthArgs, HealthConfig};
pub use board::HEALTH_MAP;
pub use checks::{Checks, ServiceCheck};
pub use forwarding::Question;
pub use probe::{Forwarding, ask};
pub use server::{PROXY_MODE, Servers};
pub use state::{Facts, Moment, NodeSeen, UPDATE_LIMIT};
pub use told::Health;
