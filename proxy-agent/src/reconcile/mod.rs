//! From desired state to map writes: ids, ownership of frontends, diff, apply, retry, restore.
//!
//! Reading order: [`Reconciler`] (one Service at a time), `target` (names become numbers), [`diff`](fn@diff)
//! (what has to be written), `claims` (who owns a frontend), `restore` (a restart changes nothing), [`Dump`].
//! The agent's main loop owns the one [`Reconciler`] of a node.

mod addresses;
mod claims;
mod diff;
mod dump;
mod few;
mod ids;
mod mirror;
mod node;
mod pending;
mod reconciler;
mod restore;
mod rings;
mod slots;
mod target;
mod vanished;
mod work;

#[cfg(test)]
mod tests;

pub use claims::{Conflict, ConflictReason, FrontendId};
pub use diff::{PortPlan, diff, diff_port};
pub use dump::{Dump, algorithm_name};
pub use mirror::Mirror;
pub use node::NodeAddress;
pub use pending::{Failure, Subject};
pub use reconciler::{Options, Reconciler, Report, Status};
pub use slots::{MAGLEV_TABLE_SIZE, MAGLEV_TABLE_SIZES, is_prime};
pub use target::PortTarget;
