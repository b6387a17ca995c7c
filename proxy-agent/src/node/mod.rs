//! The node as the agent sees it: mounts, interfaces and their roles, addresses, routes.
//!
//! [`watch`] follows the kernel by rtnetlink, [`NodeNet`] is the state that results, and [`view`] turns it into what the
//! loader (which interfaces) and the reconciler (IFACES, ADDRS, which endpoints are direct) need.

mod clock;
mod cookie;
mod mounts;
mod net;
mod patterns;
pub mod ports;
mod roles;
mod routes;
mod source_filter;
pub mod view;
pub mod watch;

pub use clock::seconds_since_boot;
pub use cookie::netns_cookie;
pub(crate) use cookie::socket_cookie;
pub use mounts::{BPFFS, MountError, cgroup2_root, ensure_bpffs, on_bpffs};
pub use net::{Link, NetChange, NodeNet};
pub use patterns::Patterns;
pub use roles::{RoleRules, role_of};
pub use routes::{Route, RouteKey, RouteTable};
pub use view::{NodePortAddresses, NodeView};
