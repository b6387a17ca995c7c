//! Questions to the kernel's own tables: routes and sockets.

use aya_ebpf::bindings::{__sk_buff, bpf_fib_lookup, bpf_sock_tuple};
use aya_ebpf::helpers::generated::{bpf_fib_lookup as fib_lookup, bpf_sk_lookup_udp, bpf_sk_release};
use core::mem::zeroed;
use proxy_common::net::{Family, Ipv4, Ipv6, Tuple, V4, V6};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_NO_NEIGH and BPF_FIB_LKUP_RET_FRAG_NEEDED: a route was found, the next hop's address may
/// be unresolved, the packet may be longer than the link takes (a tunnel device cuts it).
const FIB_SUCCESS: i64 = 0;
const FIB_NO_NEIGH: i64 = 7;
const FIB_TOO_LONG: i64 = 8;
/// BPF_F_CURRENT_NETNS.
const CURRENT_NETNS: u64 = u64::MAX;

/// What differs between the families when the kernel is asked.
pub(crate) trait KernelFamily: Family {
    fn route(skb: *mut __sk_buff, src: &Self::Addr, dst: &Self::Addr) -> Option<u32>;
    fn has_connected_udp(skb: *mut __sk_buff, tuple: &Tuple<Self>) -> bool;
}

#[inline(always)]
fn lookup_route(skb: *mut __sk_buff, params: &mut bpf_fib_lookup) -> Option<u32> {
    // SAFETY: `skb` is the program's context.
    params.ifindex = unsafe { (*skb).ifindex };
    // SAFETY: context and a parameter block of the given size.
    let result = unsafe { fib_lookup(skb.cast(), params, size_of::<bpf_fib_lookup>() as i32, 0) };
    matches!(result, FIB_SUCCESS | FIB_NO_NEIGH | FIB_TOO_LONG).then_some(params.ifindex)
}

#[inline(always)]
fn lookup_udp(skb: *mut __sk_buff, tuple: &mut bpf_sock_tuple, size: usize) -> bool {
    // SAFETY: context and a tuple whose first `size` bytes are set; the reference is released below.
    let sock = unsafe { bpf_sk_lookup_udp(skb.cast(), tuple, size as u32, CURRENT_NETNS, 0) };
    if sock.is_null() {
        return false;
    }
    // SAFETY: not null, and held until the release.
    let connected = unsafe { (&raw const (*sock).dst_port).read_volatile() } != 0;
    // SAFETY: taken above.
    unsafe { bpf_sk_release(sock.cast()) };
    connected
}

impl KernelFamily for V4 {
    #[inline(always)]
    fn route(skb: *mut __sk_buff, src: &Ipv4, dst: &Ipv4) -> Option<u32> {
        // SAFETY: a C struct of integers.
        let mut params: bpf_fib_lookup = unsafe { zeroed() };
        params.family = AF_INET;
        params.__bindgen_anon_3.ipv4_src = src.word();
        params.__bindgen_anon_4.ipv4_dst = dst.word();
        lookup_route(skb, &mut params)
    }

    #[inline(always)]
    fn has_connected_udp(skb: *mut __sk_buff, tuple: &Tuple<Self>) -> bool {
        // SAFETY: a C struct of integers.
        let mut raw: bpf_sock_tuple = unsafe { zeroed() };
        // SAFETY: the IPv4 member of a zeroed union.
        let v4 = unsafe { &mut raw.__bindgen_anon_1.ipv4 };
        v4.saddr = tuple.src.word();
        v4.daddr = tuple.dst.word();
        v4.sport = tuple.src_port.to_be();
        v4.dport = tuple.dst_port.to_be();
        let size = size_of_val(v4);
        lookup_udp(skb, &mut raw, size)
    }
}

impl KernelFamily for V6 {
    #[inline(always)]
    fn route(skb: *mut __sk_buff, src: &Ipv6, dst: &Ipv6) -> Option<u32> {
        // SAFETY: a C struct of integers.
        let mut params: bpf_fib_lookup = unsafe { zeroed() };
        params.family = AF_INET6;
        params.__bindgen_anon_3.ipv6_src = src.words();
        params.__bindgen_anon_4.ipv6_dst = dst.words();
        lookup_route(skb, &mut params)
    }

    #[inline(always)]
    fn has_connected_udp(skb: *mut __sk_buff, tuple: &Tuple<Self>) -> bool {
        // SAFETY: a C struct of integers.
        let mut raw: bpf_sock_tuple = unsafe { zeroed() };
        // SAFETY: the IPv6 member of a zeroed union.
        let v6 = unsafe { &mut raw.__bindgen_anon_1.ipv6 };
        v6.saddr = tuple.src.words();
        v6.daddr = tuple.dst.words();
        v6.sport = tuple.src_port.to_be();
        v6.dport = tuple.dst_port.to_be();
        let size = size_of_val(v6);
        lookup_udp(skb, &mut raw, size)
    }
}
