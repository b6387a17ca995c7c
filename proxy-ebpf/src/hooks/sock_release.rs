//! The end of a socket: what was remembered of it goes. (Entries of unconnected UDP sockets age out.)

use crate::maps::{FamilyMaps, SOCK_LOADS};
use crate::tables::KernelTables;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;
use core::ptr::null_mut;
use proxy_common::abi::{SockCookie, SockDirection, SockKey};
use proxy_common::lb::Tables;
use proxy_common::net::{Family as _, Ipv4, Ipv6, TCP, V4, V6};

const ALLOW: i32 = 1;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

#[cgroup_sock(sock_release)]
pub(crate) fn sock_release(ctx: SockContext) -> i32 {
    let sock: *mut bpf_sock = ctx.sock;
    // SAFETY: context fields; words of the address one by one, as the verifier wants them.
    let (family, protocol, port) = unsafe { ((*sock).family, (*sock).protocol as u8, u16::from_be((*sock).dst_port)) };
    if port == 0 && protocol != TCP {
        return ALLOW;
    }
    // SAFETY: context.
    let cookie = unsafe { bpf_get_socket_cookie(sock.cast()) };
    // Also after a connect that failed: then the socket has no peer any more.
    if protocol == TCP {
        uncount(SockCookie::new(cookie));
    }
    if port == 0 {
        return ALLOW;
    }
    let cookie = [cookie as u32, (cookie >> 32) as u32];
    if family == AF_INET {
        // SAFETY: context field.
        let addr = Ipv4::from_word(unsafe { (*sock).dst_ip4 });
        forget::<V4>(SockKey { cookie, addr, port, protocol, direction: SockDirection::Reply });
    } else if family == AF_INET6 {
        // SAFETY: context fields.
        let words = unsafe {
            [
                (&raw const (*sock).dst_ip6[0]).read_volatile(),
                (&raw const (*sock).dst_ip6[1]).read_volatile(),
                (&raw const (*sock).dst_ip6[2]).read_volatile(),
                (&raw const (*sock).dst_ip6[3]).read_volatile(),
            ]
        };
        let direction = SockDirection::Reply;
        if words[0] | words[1] == 0 && words[2] == 0xffff_u32.to_be() {
            forget::<V4>(SockKey { cookie, addr: Ipv4::from_word(words[3]), port, protocol, direction });
        } else {
            forget::<V6>(SockKey { cookie, addr: Ipv6::from_words(words), port, protocol, direction });
        }
    }
    ALLOW
}

/// Takes the socket off the load of its backend.
#[inline(always)]
fn uncount(cookie: SockCookie) {
    // SAFETY: copied at once; the cookie in it is compared below.
    let Some(load) = unsafe { SOCK_LOADS.get(cookie) }.copied() else { return };
    if load.check != cookie.cookie[0] {
        return;
    }
    let _ = SOCK_LOADS.remove(cookie);
    let tables = KernelTables { skb: null_mut() };
    if load.family == u32::from(V4::VERSION) {
        Tables::<V4>::add_load(&tables, load.backend, -1);
    } else {
        Tables::<V6>::add_load(&tables, load.backend, -1);
    }
}

#[inline(always)]
fn forget<F: FamilyMaps>(reply: SockKey<F>) {
    let map = F::sock_revnat();
    // SAFETY: copied at once; the cookie in it is compared below.
    let Some(frontend) = unsafe { map.get(reply) }.copied() else { return };
    if frontend.check == reply.cookie[0] {
        let request = SockKey { addr: frontend.addr, port: frontend.port, direction: SockDirection::Request, ..reply };
        let _ = map.remove(request);
    }
    let _ = map.remove(reply);
}
