//! Sends a packet elsewhere than the stack would.

use aya_ebpf::bindings::{BPF_F_INGRESS, TC_ACT_REDIRECT, TC_ACT_SHOT};
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_redirect_neigh};

/// Out of `ifindex` as it is, link header included.
#[inline(always)]
pub(crate) fn out_of(ifindex: u32) -> i32 {
    // SAFETY: no pointers.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// Into the node's stack by `ifindex`.
#[inline(always)]
pub(crate) fn into(ifindex: u32) -> i32 {
    // SAFETY: no pointers.
    unsafe { bpf_redirect(ifindex, u64::from(BPF_F_INGRESS)) as i32 }
}

/// Out of `ifindex`; the kernel resolves the next hop and keeps the packet meanwhile. By lo that delivers a packet for an address
/// of the node: with a route found for an outgoing packet Linux asks no more whether its source is reached by the link.
#[inline(always)]
pub(crate) fn by_neighbour(ifindex: u32) -> i32 {
    // SAFETY: no parameters: the kernel looks up the next hop of the packet's destination itself.
    let action = unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) } as i32;
    if action == TC_ACT_REDIRECT { action } else { TC_ACT_SHOT }
}
