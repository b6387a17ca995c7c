//! What the kernel side and the user side of Weir share, and everything that decides.
//!
//! Reading order: [`abi`] (what stands in the BPF maps), [`net`] (addresses, parser, checksums),
//! [`lb`] (what happens to a packet or a socket). Nothing here does I/O; the maps are reached through
//! [`lb::Tables`], which the kernel implements over BPF maps and the tests over plain collections.
#![cfg_attr(not(test), no_std)]

pub mod abi;
#[doc(hidden)]
pub mod bench;
pub mod lb;
pub mod net;
