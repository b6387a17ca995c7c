//! Carries out the translation of an ICMP error: its own addresses, the packet that it quotes, and the checksums of both.

use crate::frame::{Deep, Frame};
use crate::rewrite::{Failed, RewriteFamily, ports, replace_l4, store, swap_link_addresses};
use aya_ebpf::bindings::__sk_buff;
use proxy_common::lb::{CHANGED_DST, CHANGED_SRC, Work};
use proxy_common::net::{Bytes, Difference, SCTP, UDP, checksum_offset, sctp_checksum_change, transport_len};

/// Offset of the checksum in an ICMP or ICMPv6 header (RFC 792, RFC 4443).
const ICMP_CHECK: u32 = 2;
/// Offset of the checksum in an IPv4 header (RFC 791).
const IPV4_CHECK: u32 = 10;

#[inline(always)]
pub(crate) fn rewrite_error<F: RewriteFamily>(skb: *mut __sk_buff, work: &Work<F>) -> Result<(), Failed> {
    let icmp_check = u32::from(work.packet.l4_offset) + ICMP_CHECK;
    let inside = rewrite_quote(skb, work)?;
    if replace_l4(skb, icmp_check, 0, u64::from(inside.sum()), 0) != 0 {
        return Err(Failed);
    }
    let l3 = u32::from(work.packet.l3_offset);
    let (old, new) = (&work.packet.tuple, &work.rewrite.tuple);
    if work.rewrite.changed & CHANGED_SRC != 0 {
        F::replace_error_address(skb, l3, icmp_check, l3 + F::SRC, &old.src, &new.src)?;
    }
    if work.rewrite.changed & CHANGED_DST != 0 {
        F::replace_error_address(skb, l3, icmp_check, l3 + F::DST, &old.dst, &new.dst)?;
    }
    if work.rewrite.bounce { swap_link_addresses(skb) } else { Ok(()) }
}

/// Rewrites the quoted packet. Returns what has changed in it, its checksums included.
#[inline(always)]
fn rewrite_quote<F: RewriteFamily>(skb: *mut __sk_buff, work: &Work<F>) -> Result<Difference, Failed> {
    let (l3, l4) = (u32::from(work.quote.l3_offset), u32::from(work.quote.l4_offset));
    let (old, new) = (&work.quote.tuple, &work.quoted.tuple);
    let addresses = Difference::NONE.address(&old.src, &new.src).address(&old.dst, &new.dst);
    let covered =
        addresses.word(old.src_port.to_be(), new.src_port.to_be()).word(old.dst_port.to_be(), new.dst_port.to_be());
    let mut changed = covered;
    if F::VERSION == 4 {
        let check: u16 = Deep(Frame::of(skb)).load((l3 + IPV4_CHECK) as usize).ok_or(Failed)?;
        let after = addresses.apply(check);
        store(skb, l3 + IPV4_CHECK, &after)?;
        changed = changed.word(check, after);
    }
    let at = l4 + checksum_offset(work.quote.protocol) as u32;
    if work.quoted_checksum && work.quote.protocol == SCTP {
        changed = changed.and(rewrite_quoted_sctp(skb, work, at)?);
    } else if work.quoted_checksum {
        let check: u16 = Deep(Frame::of(skb)).load(at as usize).ok_or(Failed)?;
        let udp = work.quote.protocol == UDP;
        // RFC 768: zero says that there is none; a computed zero is sent as 0xffff.
        if !(udp && check == 0) {
            let after = match covered.apply(check) {
                0 if udp => 0xffff,
                after => after,
            };
            store(skb, at, &after)?;
            changed = changed.word(check, after);
        }
    }
    store(skb, l3 + F::SRC, &new.src)?;
    store(skb, l3 + F::DST, &new.dst)?;
    store(skb, l4, &[new.src_port.to_be(), new.dst_port.to_be()])?;
    Ok(changed)
}

/// Rewrites the checksum at `at`; it goes over the quoted packet as it was before it was cut. Returns what has changed.
#[inline(always)]
fn rewrite_quoted_sctp<F: RewriteFamily>(skb: *mut __sk_buff, work: &Work<F>, at: u32) -> Result<Difference, Failed> {
    let frame = Deep(Frame::of(skb));
    let len = transport_len(&frame, &work.quote).ok_or(Failed)?;
    let before: u32 = frame.load(at as usize).ok_or(Failed)?;
    let after = before ^ sctp_checksum_change(ports(&work.quote.tuple), ports(&work.quoted.tuple), len).to_le();
    store(skb, at, &after)?;
    Ok(Difference::NONE.word(before as u16, after as u16).word((before >> 16) as u16, (after >> 16) as u16))
}
