//! The end of a socket: what was remembered of it goes. (Entries of unconnected UDP sockets age out.)

use crate::maps::FamilyMaps;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;
use proxy_common::abi::{SockDirection, SockKey};
use proxy_common::net::{Ipv4, Ipv6, V4, V6};

const ALLOW: i32 = 1;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

#[cgroup_sock(sock_release)]
pub(crate) fn sock_release(ctx: SockContext) -> i32 {
    let sock: *mut bpf_sock = ctx.sock;
    // SAFETY: context fields; words of the address one by one, as the verifier wants them.
    let (family, protocol, port) = unsafe { ((*sock).family, (*sock).protocol as u8, u16::from_be((*sock).dst_port)) };
    if port == 0 {
        return ALLOW;
    }
    // SAFETY: context.
    let cookie = unsafe { bpf_get_socket_cookie(sock.cast()) };
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
