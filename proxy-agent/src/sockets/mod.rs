//! Connected UDP sockets whose endpoint left.
//!
//! The connect hook gave such a socket the endpoint's address; no hook sees what it sends afterwards. When the reconciler
//! retires a UDP endpoint, [`Ender`] looks for these sockets in every network namespace of the node and ends them with an error
//! (ECONNABORTED), so that the application connects anew. Called by the agent's main loop; docs/privileges.md says what it needs.
//!
//! Reading order: [`Ender`], `choice` (which sockets), `namespaces` (where), `diag` (how).

mod choice;
mod diag;
mod ender;
mod namespaces;
mod probe;

use std::path::PathBuf;

pub use ender::{Ender, News};

/// Where network namespaces are looked for.
#[derive(Clone, Debug)]
pub struct SocketsConfig {
    /// False: sockets are left alone, their packets steered anew at tc.
    pub destroy: bool,
    /// Directories in which container runtimes keep network namespaces.
    pub netns_dirs: Vec<PathBuf>,
    /// The proc file system of the host's PID namespace.
    pub host_proc: PathBuf,
}
