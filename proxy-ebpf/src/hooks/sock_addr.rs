//! What the socket hooks share: the context's address as a request, the outcome as a return code.
//!
//! IPv4-mapped IPv6 addresses (RFC 4291 section 2.5.5.2) are IPv4 to every map.

use crate::maps::FamilyMaps;
use crate::record::count;
use crate::socket::KernelFamily;
use crate::tables::KernelTables;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};
use core::ptr::null_mut;
use proxy_common::abi::{Reason, ServiceCidrs};
use proxy_common::lb::{SockOutcome, SockRequest, connect, reveal};
use proxy_common::net::{Family, Ipv4, Ipv6, V4, V6};

/// Return codes of sock_addr programs.
const ALLOW: i32 = 1;
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;
/// ::ffff:0:0/96.
const MAPPED: u32 = 0xffff;

/// A family as a socket sees it. `M` says how its addresses stand in the context.
pub(crate) trait SockFamily: Family + FamilyMaps + ServiceCidrs + KernelFamily {}
impl SockFamily for V4 {}
impl SockFamily for V6 {}

/// Where in the context an address of family `F` stands.
pub(crate) trait Place<F: Family> {
    fn put(ctx: *mut bpf_sock_addr, addr: &F::Addr);
}

/// `user_ip4`.
pub(crate) struct Ip4;
/// `user_ip6`.
pub(crate) struct Ip6;
/// `user_ip6`, an IPv4-mapped address.
pub(crate) struct Mapped;

impl Place<V4> for Ip4 {
    #[inline(always)]
    fn put(ctx: *mut bpf_sock_addr, addr: &Ipv4) {
        // SAFETY: context field, one aligned word.
        unsafe { (*ctx).user_ip4 = addr.word() };
    }
}

impl Place<V6> for Ip6 {
    #[inline(always)]
    fn put(ctx: *mut bpf_sock_addr, addr: &Ipv6) {
        let words = addr.words();
        // SAFETY: context fields; volatile, because the verifier takes only single words here.
        unsafe {
            (&raw mut (*ctx).user_ip6[0]).write_volatile(words[0]);
            (&raw mut (*ctx).user_ip6[1]).write_volatile(words[1]);
            (&raw mut (*ctx).user_ip6[2]).write_volatile(words[2]);
            (&raw mut (*ctx).user_ip6[3]).write_volatile(words[3]);
        }
    }
}

impl Place<V4> for Mapped {
    #[inline(always)]
    fn put(ctx: *mut bpf_sock_addr, addr: &Ipv4) {
        // SAFETY: as above; the other words say "mapped" already.
        unsafe { (&raw mut (*ctx).user_ip6[3]).write_volatile(addr.word()) };
    }
}

#[inline(always)]
pub(crate) fn ip4(ctx: *mut bpf_sock_addr) -> Ipv4 {
    // SAFETY: context field.
    Ipv4::from_word(unsafe { (*ctx).user_ip4 })
}

/// The IPv6 address, or the IPv4 address in it.
#[inline(always)]
pub(crate) fn ip6(ctx: *mut bpf_sock_addr) -> Result<Ipv6, Ipv4> {
    // SAFETY: context fields; volatile, because the verifier takes only single words here.
    let words = unsafe {
        [
            (&raw const (*ctx).user_ip6[0]).read_volatile(),
            (&raw const (*ctx).user_ip6[1]).read_volatile(),
            (&raw const (*ctx).user_ip6[2]).read_volatile(),
            (&raw const (*ctx).user_ip6[3]).read_volatile(),
        ]
    };
    if words[0] | words[1] == 0 && words[2] == MAPPED.to_be() {
        Err(Ipv4::from_word(words[3]))
    } else {
        Ok(Ipv6::from_words(words))
    }
}

#[inline(always)]
fn request<F: Family>(ctx: *mut bpf_sock_addr, addr: F::Addr) -> SockRequest<F> {
    // SAFETY: context; the port is 16 bits in network order.
    let (port, protocol) = unsafe { (u16::from_be((*ctx).user_port as u16), (*ctx).protocol as u8) };
    // SAFETY: context.
    let (cookie, netns) = unsafe { (bpf_get_socket_cookie(ctx.cast()), bpf_get_netns_cookie(ctx.cast())) };
    SockRequest { addr, port, protocol, cookie, netns }
}

#[inline(always)]
fn set_port(ctx: *mut bpf_sock_addr, port: u16) {
    // SAFETY: context field.
    unsafe { (*ctx).user_port = u32::from(port.to_be()) };
}

#[inline(always)]
fn deny(errno: i32) -> i32 {
    // SAFETY: no pointers. Without it the application would see EPERM.
    unsafe { bpf_set_retval(-errno) };
    DENY
}

/// `connect` and `sendmsg`.
#[inline(always)]
pub(crate) fn translate<F: SockFamily, P: Place<F>>(ctx: *mut bpf_sock_addr, addr: F::Addr) -> i32 {
    let tables = KernelTables { skb: null_mut() };
    match connect::<F, _>(&tables, &request(ctx, addr)) {
        SockOutcome::Pass(reason) => {
            if !matches!(reason, Reason::NotOurs) {
                count(reason);
            }
            ALLOW
        }
        SockOutcome::To { addr, port, reason } => {
            count(reason);
            P::put(ctx, &addr);
            set_port(ctx, port);
            ALLOW
        }
        SockOutcome::Refuse => {
            count(Reason::SockRefused);
            deny(ECONNREFUSED)
        }
        SockOutcome::Unreachable => {
            count(Reason::SockUnreachable);
            deny(EHOSTUNREACH)
        }
    }
}

/// `recvmsg` and `getpeername`: the application sees the frontend.
#[inline(always)]
pub(crate) fn show_frontend<F: SockFamily, P: Place<F>>(ctx: *mut bpf_sock_addr, addr: F::Addr) -> i32 {
    let tables = KernelTables { skb: null_mut() };
    if let Some((addr, port)) = reveal::<F, _>(&tables, &request(ctx, addr)) {
        count(Reason::SockReply);
        P::put(ctx, &addr);
        set_port(ctx, port);
    }
    ALLOW
}

/// Makes the program of one attach point from a function generic over family and place.
macro_rules! sock_addr_programs {
    ($act:ident, $v4:ident = $v4_hook:ident, $v6:ident = $v6_hook:ident) => {
        #[aya_ebpf::macros::cgroup_sock_addr($v4_hook)]
        pub(crate) fn $v4(ctx: aya_ebpf::programs::SockAddrContext) -> i32 {
            use $crate::hooks::sock_addr::{Ip4, ip4, $act};
            let ctx = ctx.sock_addr;
            $act::<proxy_common::net::V4, Ip4>(ctx, ip4(ctx))
        }

        #[aya_ebpf::macros::cgroup_sock_addr($v6_hook)]
        pub(crate) fn $v6(ctx: aya_ebpf::programs::SockAddrContext) -> i32 {
            use $crate::hooks::sock_addr::{Ip6, Mapped, ip6, $act};
            let ctx = ctx.sock_addr;
            match ip6(ctx) {
                Ok(addr) => $act::<proxy_common::net::V6, Ip6>(ctx, addr),
                Err(addr) => $act::<proxy_common::net::V4, Mapped>(ctx, addr),
            }
        }
    };
}
pub(crate) use sock_addr_programs;
