//! Carries a [`Rewrite`] out on a packet.
//!
//! A tc program cannot see whether a checksum is complete, partial or left to the device: all L4 checksums go through
//! bpf_l4_csum_replace. All writes go through helpers: a direct write would make the kernel copy the head of every packet
//! that a socket still holds (TCP sends clones), changed or not.

use crate::frame::{Deep, Frame};
use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_store_bytes};
use proxy_common::lb::{CHANGED_DST, CHANGED_DST_PORT, CHANGED_SRC, CHANGED_SRC_PORT, Rewrite};
use proxy_common::net::{
    Bytes, ETH_LEN, Family, Fragment, Ipv4, Ipv6, Packet, ParseFamily, SCTP, Tuple, UDP, V4, V6, checksum_offset,
    sctp_checksum_change, transport_len,
};

/// The packet could not be changed (no memory for a private copy of its head).
pub(crate) struct Failed;

/// Tells bpf_l4_csum_replace that a CHECKSUM_COMPLETE sum covers the IPv6 addresses already: without it the sum is wrong after
/// the change. Since Linux 6.16 (and stable releases); older ones answer EINVAL and never had the distinction.
const BPF_F_IPV6: u64 = 1 << 7;
const EINVAL: i64 = -22;

/// Offsets in the network headers (RFC 791, RFC 8200).
const IPV4_CHECK: u32 = 10;
const IPV4_SRC: u32 = 12;
const IPV4_DST: u32 = 16;
const IPV6_SRC: u32 = 8;
const IPV6_DST: u32 = 24;

#[inline(always)]
pub(crate) fn store<T>(skb: *mut __sk_buff, offset: u32, value: &T) -> Result<(), Failed> {
    store_with(skb, offset, value, 0)
}

#[inline(always)]
fn store_with<T>(skb: *mut __sk_buff, offset: u32, value: &T, flags: u64) -> Result<(), Failed> {
    let (from, len) = (core::ptr::from_ref(value), size_of::<T>() as u32);
    // SAFETY: context; `value` is readable for its size.
    let result = unsafe { bpf_skb_store_bytes(skb.cast(), offset, from.cast(), len, flags) };
    if result == 0 { Ok(()) } else { Err(Failed) }
}

#[inline(always)]
pub(crate) fn replace_l4(skb: *mut __sk_buff, offset: u32, from: u64, to: u64, flags: u64) -> i64 {
    // SAFETY: context; the helper checks the offset.
    unsafe { bpf_l4_csum_replace(skb.cast(), offset, from, to, flags) }
}

/// A family's way to put another address into a packet.
pub(crate) trait RewriteFamily: ParseFamily {
    const SRC: u32;
    const DST: u32;
    /// Patches the checksums for an address that changes from `from` to `to`. `l4_check` is the L4 checksum's offset.
    fn replace(
        skb: *mut __sk_buff,
        l3: u32,
        l4_check: u32,
        from: &Self::Addr,
        to: &Self::Addr,
        flags: u64,
    ) -> Result<(), Failed>;
    /// Writes an address over which no L4 checksum of this packet goes.
    fn replace_address(skb: *mut __sk_buff, l3: u32, at: u32, from: &Self::Addr, to: &Self::Addr)
    -> Result<(), Failed>;
    /// Writes an address of an ICMP error, over which ICMPv6 has a checksum at `icmp_check`, and ICMP has none.
    fn replace_error_address(
        skb: *mut __sk_buff,
        l3: u32,
        icmp_check: u32,
        at: u32,
        from: &Self::Addr,
        to: &Self::Addr,
    ) -> Result<(), Failed>;
}

impl RewriteFamily for V4 {
    const SRC: u32 = IPV4_SRC;
    const DST: u32 = IPV4_DST;
    #[inline(always)]
    fn replace(skb: *mut __sk_buff, l3: u32, l4_check: u32, from: &Ipv4, to: &Ipv4, flags: u64) -> Result<(), Failed> {
        let (from, to) = (u64::from(from.word()), u64::from(to.word()));
        if replace_l4(skb, l4_check, from, to, flags | u64::from(BPF_F_PSEUDO_HDR) | 4) != 0 {
            return Err(Failed);
        }
        // SAFETY: context; the helper checks the offset.
        if unsafe { bpf_l3_csum_replace(skb.cast(), l3 + IPV4_CHECK, from, to, 4) } != 0 {
            return Err(Failed);
        }
        Ok(())
    }

    #[inline(always)]
    fn replace_address(skb: *mut __sk_buff, l3: u32, at: u32, from: &Ipv4, to: &Ipv4) -> Result<(), Failed> {
        // SAFETY: context; the helper checks the offset.
        let done = unsafe {
            bpf_l3_csum_replace(skb.cast(), l3 + IPV4_CHECK, u64::from(from.word()), u64::from(to.word()), 4)
        };
        if done != 0 { Err(Failed) } else { store(skb, at, to) }
    }

    #[inline(always)]
    fn replace_error_address(
        skb: *mut __sk_buff,
        l3: u32,
        _icmp_check: u32,
        at: u32,
        from: &Ipv4,
        to: &Ipv4,
    ) -> Result<(), Failed> {
        Self::replace_address(skb, l3, at, from, to)
    }
}

impl RewriteFamily for V6 {
    const SRC: u32 = IPV6_SRC;
    const DST: u32 = IPV6_DST;
    #[inline(always)]
    fn replace(skb: *mut __sk_buff, _l3: u32, l4_check: u32, from: &Ipv6, to: &Ipv6, flags: u64) -> Result<(), Failed> {
        let (mut from, mut to) = (from.words(), to.words());
        // SAFETY: two readable blocks of 16 bytes.
        let diff = unsafe { bpf_csum_diff(from.as_mut_ptr(), 16, to.as_mut_ptr(), 16, 0) };
        let flags = flags | u64::from(BPF_F_PSEUDO_HDR);
        match replace_l4(skb, l4_check, 0, diff as u64, flags | BPF_F_IPV6) {
            0 => Ok(()),
            EINVAL if replace_l4(skb, l4_check, 0, diff as u64, flags) == 0 => Ok(()),
            _ => Err(Failed),
        }
    }

    #[inline(always)]
    fn replace_address(skb: *mut __sk_buff, _l3: u32, at: u32, _from: &Ipv6, to: &Ipv6) -> Result<(), Failed> {
        // Nothing else changes with it: a CHECKSUM_COMPLETE sum over the packet must.
        store_with(skb, at, to, u64::from(BPF_F_RECOMPUTE_CSUM))
    }

    #[inline(always)]
    fn replace_error_address(
        skb: *mut __sk_buff,
        l3: u32,
        icmp_check: u32,
        at: u32,
        from: &Ipv6,
        to: &Ipv6,
    ) -> Result<(), Failed> {
        Self::replace(skb, l3, icmp_check, from, to, 0)?;
        store(skb, at, to)
    }
}

/// Rewrites addresses, ports and link addresses.
#[inline(always)]
pub(crate) fn rewrite<F: RewriteFamily>(
    skb: *mut __sk_buff,
    packet: &Packet<F>,
    rewrite: &Rewrite<F>,
) -> Result<(), Failed> {
    let (l3, l4) = (u32::from(packet.l3_offset), u32::from(packet.l4_offset));
    let l4_check = l4 + checksum_offset(packet.protocol) as u32;
    // A UDP checksum of zero says that there is none (RFC 768); a computed zero is sent as 0xffff.
    let flags = if packet.protocol == UDP { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
    let (old, new) = (&packet.tuple, &rewrite.tuple);
    if matches!(packet.fragment, Fragment::Later) {
        rewrite_addresses(skb, packet, rewrite)?;
        return if rewrite.bounce { swap_link_addresses(skb) } else { Ok(()) };
    }
    if packet.protocol == SCTP {
        return rewrite_sctp(skb, packet, rewrite);
    }
    if rewrite.changed & CHANGED_SRC != 0 {
        F::replace(skb, l3, l4_check, &old.src, &new.src, flags)?;
    }
    if rewrite.changed & CHANGED_DST != 0 {
        F::replace(skb, l3, l4_check, &old.dst, &new.dst, flags)?;
    }
    if rewrite.changed & CHANGED_SRC_PORT != 0 {
        replace_port(skb, l4_check, old.src_port, new.src_port, flags)?;
    }
    if rewrite.changed & CHANGED_DST_PORT != 0 {
        replace_port(skb, l4_check, old.dst_port, new.dst_port, flags)?;
    }
    store_tuple(skb, l3, l4, new)?;
    if rewrite.bounce { swap_link_addresses(skb) } else { Ok(()) }
}

/// Rewrites the addresses of a packet over which no checksum but IPv4's goes: SCTP's does not, and that of a later fragment is
/// in another packet.
#[inline(always)]
fn rewrite_addresses<F: RewriteFamily>(
    skb: *mut __sk_buff,
    packet: &Packet<F>,
    rewrite: &Rewrite<F>,
) -> Result<(), Failed> {
    let l3 = u32::from(packet.l3_offset);
    let (old, new) = (&packet.tuple, &rewrite.tuple);
    if rewrite.changed & CHANGED_SRC != 0 {
        F::replace_address(skb, l3, l3 + F::SRC, &old.src, &new.src)?;
    }
    if rewrite.changed & CHANGED_DST != 0 {
        F::replace_address(skb, l3, l3 + F::DST, &old.dst, &new.dst)?;
    }
    Ok(())
}

/// Rewrites addresses, ports and link addresses of an SCTP packet.
#[inline(always)]
fn rewrite_sctp<F: RewriteFamily>(skb: *mut __sk_buff, packet: &Packet<F>, rewrite: &Rewrite<F>) -> Result<(), Failed> {
    rewrite_addresses(skb, packet, rewrite)?;
    if rewrite.changed & (CHANGED_SRC_PORT | CHANGED_DST_PORT) != 0 {
        let (old, new) = (&packet.tuple, &rewrite.tuple);
        let l4 = u32::from(packet.l4_offset);
        let len = transport_len(&Frame::of(skb), packet).ok_or(Failed)?;
        let at = l4 + checksum_offset(SCTP) as u32;
        let check: u32 = Deep(Frame::of(skb)).load(at as usize).ok_or(Failed)?;
        // A socket leaves zero there if the device, or the kernel in its place, is to compute it over what it finds.
        if check != 0 || partial_checksum(skb, at)?.is_none() {
            let change = sctp_checksum_change(ports(old), ports(new), len);
            store_with(skb, at, &(check ^ change.to_le()), u64::from(BPF_F_RECOMPUTE_CSUM))?;
        }
        let ports = [new.src_port.to_be(), new.dst_port.to_be()];
        store_with(skb, l4, &ports, u64::from(BPF_F_RECOMPUTE_CSUM))?;
    }
    if rewrite.bounce { swap_link_addresses(skb) } else { Ok(()) }
}

/// The ports as they stand in a header, as one number.
#[inline(always)]
pub(crate) fn ports<F: Family>(tuple: &Tuple<F>) -> u32 {
    u32::from(tuple.src_port) << 16 | u32::from(tuple.dst_port)
}

/// The two bytes of a checksum at `at`, if it is partial: only then does bpf_l4_csum_replace leave it alone where a
/// pseudo-header is not concerned. Nothing else tells.
#[inline(always)]
pub(crate) fn partial_checksum(skb: *mut __sk_buff, at: u32) -> Result<Option<u16>, Failed> {
    let before: u16 = Deep(Frame::of(skb)).load(at as usize).ok_or(Failed)?;
    if replace_l4(skb, at, 0, 1, 2) != 0 {
        return Err(Failed);
    }
    let after: u16 = Deep(Frame::of(skb)).load(at as usize).ok_or(Failed)?;
    if before == after {
        return Ok(Some(u16::from_be(before)));
    }
    store(skb, at, &before)?;
    Ok(None)
}

#[inline(always)]
fn replace_port(skb: *mut __sk_buff, l4_check: u32, from: u16, to: u16, flags: u64) -> Result<(), Failed> {
    let (from, to) = (u64::from(from.to_be()), u64::from(to.to_be()));
    if replace_l4(skb, l4_check, from, to, flags | 2) != 0 { Err(Failed) } else { Ok(()) }
}

/// Both addresses, which end a network header without options, and both ports, which begin the next one.
#[repr(C)]
struct Tail<F: Family> {
    src: F::Addr,
    dst: F::Addr,
    ports: [u16; 2],
}

/// Writes addresses and ports: in one go where they lie side by side, each call costs as much as a look-up.
#[inline(always)]
fn store_tuple<F: RewriteFamily>(skb: *mut __sk_buff, l3: u32, l4: u32, new: &Tuple<F>) -> Result<(), Failed> {
    let ports = [new.src_port.to_be(), new.dst_port.to_be()];
    let tail = Tail::<F> { src: new.src, dst: new.dst, ports };
    let addresses = size_of::<Tail<F>>() as u32 - 4;
    if l4 == l3 + F::SRC + addresses {
        return store(skb, l3 + F::SRC, &tail);
    }
    store(skb, l3 + F::SRC, &tail.src)?;
    store(skb, l3 + F::DST, &tail.dst)?;
    store(skb, l4, &tail.ports)
}

/// Sends the packet back to where it came from, as far as the link is concerned.
#[inline(always)]
pub(crate) fn swap_link_addresses(skb: *mut __sk_buff) -> Result<(), Failed> {
    let Some(link) = Frame::of(skb).load::<[u16; ETH_LEN / 2 - 1]>(0) else { return Err(Failed) };
    let swapped = [link[3], link[4], link[5], link[0], link[1], link[2]];
    store(skb, 0, &swapped)
}
