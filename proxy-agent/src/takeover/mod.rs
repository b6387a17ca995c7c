//! From kube-proxy to Weir on a live node, and back. Called by `weir cleanup`, and by the agent where it is new (`adopt`).
//!
//! * `adopt`: connections that have source ports of Weir's range keep them.
//! * `release`: the writes that give all frontends back, so that new flows fall to the rules of another proxy.
//! * `leftovers`: what kube-proxy left on the node, as a plan that can be shown and carried out; made of `nft`, `iptables` and
//!   `ipvs`, which ask programs (`programs`).
//! * `running`: whether a kube-proxy runs here.
//! * `kernel_flows`: the connections that the kernel itself tracks.

mod adopt;
mod iptables;
mod ipvs;
mod kernel_flows;
mod leftovers;
mod nft;
mod programs;
mod release;
mod running;

pub use adopt::{AdoptError, Adoption};
pub use kernel_flows::{KernelFlow, kernel_flows};
pub use leftovers::{Item, Kept, Plan, Step};
pub use nft::remove_handover;
pub use programs::ProgramError;
pub use release::release;
pub use running::kube_proxies;
