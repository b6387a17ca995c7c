//! What happens to a packet or a socket. Reading order: [`decide_ingress`] and [`decide_egress`] in decide.rs, then
//! new_flow.rs (choice of an endpoint), select.rs and schedule.rs, conntrack.rs (known flows), snat.rs, fragments.rs, errors.rs, own.rs (packets
//! of the node's own sockets); connect.rs for sockets.

mod connect;
mod conntrack;
mod decide;
mod errors;
mod fragments;
mod new_flow;
mod own;
mod schedule;
mod select;
mod snat;
mod tables;
mod verdict;

pub use connect::{SockOutcome, SockRequest, connect, reveal};
pub use conntrack::{HEAL_INTERVAL_S, Side, next_state};
pub use decide::{TranslatedFamily, decide, decide_egress, decide_ingress};
pub use errors::{decide_error, pass_error};
pub use fragments::{follow_fragment, remember_fragment};
pub use schedule::CONSISTENT_SEED;
pub use select::{Chosen, Client, NotChosen, select_backend};
pub use snat::{NodeAddress, SNAT_WINDOW, Search, is_reusable};
pub use tables::{Insert, Step, TableFull, Tables};
pub use verdict::{CHANGED_DST, CHANGED_DST_PORT, CHANGED_SRC, CHANGED_SRC_PORT, Env, Rewrite, Verdict, Work};
