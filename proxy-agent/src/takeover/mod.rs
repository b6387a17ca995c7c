//! From kube-proxy to Weir on a live node, and back. Called by `weir cleanup`.
//!
//! * `release`: the writes that give all frontends back, so that new flows fall to the rules of another proxy.

mod release;

pub use release::release;
