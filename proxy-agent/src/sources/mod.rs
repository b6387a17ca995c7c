//! Where objects come from: a Kubernetes API server or a directory of manifests.
//!
//! Both send the same [`crate::model::Event`]s into the channel that the agent's main loop reads.

pub mod kubernetes;
pub mod manifests;
mod typed;
mod warnings;

pub use warnings::Warnings;

/// The main loop has ended: nobody reads the events any longer.
#[derive(Debug, thiserror::Error)]
#[error("the receiver of the events is gone")]
pub struct ReceiverGone;
