//! What others ask of the agent by HTTP: is it alive, may load balancers use the node, how is it doing.
//!
//! `agent::run` starts [`Health`] before it waits to be the node's one writer, and tells it what becomes of updates. Nothing in
//! here reads Kubernetes objects or writes the dataplane's maps.

mod answer;
mod args;
mod listener;
mod server;
mod state;

pub use args::{HealthArgs, HealthConfig};
pub use server::{Health, PROXY_MODE, Servers};
pub use state::{Facts, Moment, NodeSeen, UPDATE_LIMIT};
