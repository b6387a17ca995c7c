//! The user side of Weir as a library: sources -> model -> desired state -> diff -> apply.

pub mod agent;
pub mod check;
pub mod cli;
pub mod dataplane;
pub mod desired;
pub mod events;
pub mod fault;
pub mod health;
pub mod ingest;
pub mod kubeproxy;
pub mod loader;
pub mod logging;
pub mod metrics;
pub mod model;
pub mod node;
pub mod object;
pub mod reconcile;
pub mod sockets;
pub mod sources;
pub mod takeover;
