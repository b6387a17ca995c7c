//! Answers a packet with an ICMP "port unreachable" (RFC 792 type 3 code 3, RFC 4443 type 1 code 4), or "packet too big" (RFC 1191
//! section 4, RFC 4443 section 3.2).
//!
//! The answer comes from the frontend and quotes the network header with its options and the L4 header: 20 bytes of TCP (a
//! packet whose checksum is still partial cannot be cut shorter), 8 of UDP, 20 of SCTP (the header, and an INIT as far as its tag:
//! without it Linux does not know its association again).

use crate::frame::Frame;
use crate::maps::ICMP_BUDGET;
use crate::rewrite::{Failed, partial_checksum, store, swap_link_addresses};
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::helpers::generated::{bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_pull_data};
use bytemuck::{Pod, Zeroable};
use proxy_common::net::{
    Address, Bytes, ETH_LEN, Family, ICMPV6, IPV4_MIN_LEN, IPV6_LEN, Packet, SCTP, UDP, V4, V6, checksum_offset, fold,
    is_icmp,
};

/// ICMP errors per second and CPU. Linux's own default is 1,000 per second (net.ipv4.icmp_msgs_per_sec).
const ERRORS_PER_S: u32 = 1_000;
/// Type, code, checksum, unused.
const ICMP_LEN: usize = 8;
/// The quoted part is summed word by word: 60 bytes of IPv4 header or 40 + 64 of IPv6, and 20 of TCP or SCTP.
const MAX_QUOTED_WORDS: usize = 31;
const TTL: u8 = 64;

/// Takes one error from this second's budget.
#[inline(always)]
pub(crate) fn within_budget(now_s: u32) -> bool {
    let Some(budget) = ICMP_BUDGET.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own element.
    let [second, sent] = unsafe { &mut *budget };
    if *second != now_s {
        *second = now_s;
        *sent = 0;
    }
    *sent += 1;
    *sent <= ERRORS_PER_S
}

/// A family's header of the answer.
pub(crate) trait ReplyFamily: Family {
    /// Network and ICMP header, link header excluded.
    type Header: Pod;
    /// `quoted_len` bytes follow, whose one's complement sum is `quoted_sum`. With an `mtu` the packet is too big for a link.
    fn header(packet: &Packet<Self>, mtu: Option<u32>, quoted_len: u16, quoted_sum: u32) -> Self::Header;
}

/// Turns the packet into its own refusal, ready to be sent back out of its interface. With an `mtu` it is too big for a link.
#[inline(always)]
pub(crate) fn build<F: ReplyFamily>(skb: *mut __sk_buff, packet: &Packet<F>, mtu: Option<u32>) -> Result<(), Failed> {
    let l4_len: u32 = if packet.protocol == UDP { 8 } else { 20 };
    let keep = u32::from(packet.l4_offset) + l4_len;
    let quoted_len = keep - ETH_LEN as u32;
    if is_icmp(packet.protocol) || quoted_len > (MAX_QUOTED_WORDS * 4) as u32 {
        return Err(Failed);
    }
    // SAFETY: context.
    if unsafe { bpf_skb_change_tail(skb.cast(), keep, 0) } != 0 {
        return Err(Failed);
    }
    // Of SCTP, the parser has seen no more than the header in place.
    // SAFETY: context.
    if Frame::of(skb).len() < keep as usize && unsafe { bpf_skb_pull_data(skb, keep) } != 0 {
        return Err(Failed);
    }
    let partial = match packet.protocol {
        // One that is partial is zero here, and stays so up to a socket of this machine.
        SCTP => None,
        protocol => partial_checksum(skb, u32::from(packet.l4_offset) + checksum_offset(protocol) as u32)?,
    };
    let quoted_sum = match partial {
        None => sum_quoted(skb, keep as usize),
        // The device, or the kernel in its place, completes it yet; the L4 header then sums up to the complement of what stands in
        // the checksum field now.
        Some(check) => sum_quoted(skb, usize::from(packet.l4_offset)) + u32::from(!check),
    };
    let room = size_of::<F::Header>() as i32;
    // SAFETY: context.
    if unsafe { bpf_skb_adjust_room(skb, room, BPF_ADJ_ROOM_MAC, 0) } != 0 {
        return Err(Failed);
    }
    store(skb, ETH_LEN as u32, &F::header(packet, mtu, quoted_len as u16, quoted_sum))?;
    swap_link_addresses(skb)
}

/// One's complement sum of the packet from its network header to `end`, a multiple of four bytes.
#[inline(always)]
fn sum_quoted(skb: *mut __sk_buff, end: usize) -> u32 {
    let frame = Frame::of(skb);
    let mut sum = 0u32;
    for word in 0..MAX_QUOTED_WORDS {
        if ETH_LEN + word * 4 >= end {
            break;
        }
        let Some(pair) = frame.load::<[u16; 2]>(ETH_LEN + word * 4) else { break };
        sum += u32::from(u16::from_be(pair[0])) + u32::from(u16::from_be(pair[1]));
    }
    sum
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct ReplyV4 {
    version_ihl_tos: [u8; 2],
    total_len: [u8; 2],
    id: [u8; 2],
    fragment: [u8; 2],
    ttl: u8,
    protocol: u8,
    check: [u8; 2],
    src: [u8; 4],
    dst: [u8; 4],
    icmp: [u8; 4],
    unused: [u8; 4],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct ReplyV6 {
    version: [u8; 4],
    payload_len: [u8; 2],
    next_header: u8,
    hop_limit: u8,
    src: [u8; 16],
    dst: [u8; 16],
    icmp: [u8; 4],
    unused: [u8; 4],
}

/// Adds an address to a sum of 16-bit words in network order.
#[inline(always)]
fn sum_address<A: Address>(sum: u32, address: &A) -> u32 {
    address.fold(sum, |sum, word| {
        let word = u32::from_be(word);
        sum + (word >> 16) + (word & 0xffff)
    })
}

impl ReplyFamily for V4 {
    type Header = ReplyV4;
    #[inline(always)]
    fn header(packet: &Packet<V4>, mtu: Option<u32>, quoted_len: u16, quoted_sum: u32) -> ReplyV4 {
        let total_len = (IPV4_MIN_LEN + ICMP_LEN) as u16 + quoted_len;
        let (src, dst) = (packet.tuple.dst, packet.tuple.src);
        let fixed = 0x4500 + u32::from(total_len) + (u32::from(TTL) << 8) + 1;
        let check = !fold(sum_address(sum_address(fixed, &src), &dst));
        // A link of more than 64 KiB takes every packet.
        let (code, mtu) = mtu.map_or((3, 0), |mtu| (4, mtu as u16));
        let icmp_check = !fold(0x0300 + u32::from(code) + u32::from(mtu) + quoted_sum);
        ReplyV4 {
            version_ihl_tos: [0x45, 0],
            total_len: total_len.to_be_bytes(),
            id: [0; 2],
            fragment: [0; 2],
            ttl: TTL,
            protocol: 1,
            check: check.to_be_bytes(),
            src: src.octets,
            dst: dst.octets,
            icmp: [3, code, (icmp_check >> 8) as u8, icmp_check as u8],
            unused: [0, 0, (mtu >> 8) as u8, mtu as u8],
        }
    }
}

impl ReplyFamily for V6 {
    type Header = ReplyV6;
    #[inline(always)]
    fn header(packet: &Packet<V6>, mtu: Option<u32>, quoted_len: u16, quoted_sum: u32) -> ReplyV6 {
        let payload_len = ICMP_LEN as u16 + quoted_len;
        let (src, dst) = (packet.tuple.dst, packet.tuple.src);
        // The pseudo-header of RFC 8200 section 8.1.
        let pseudo = sum_address(sum_address(u32::from(payload_len) + u32::from(ICMPV6), &src), &dst);
        let (kind, code, mtu) = mtu.map_or((1, 4, 0), |mtu| (2, 0, mtu));
        let fixed = (u32::from(kind) << 8) + u32::from(code) + (mtu >> 16) + (mtu & 0xffff);
        let icmp_check = !fold(u32::from(fold(pseudo)) + fixed + quoted_sum);
        ReplyV6 {
            version: [0x60, 0, 0, 0],
            payload_len: payload_len.to_be_bytes(),
            next_header: ICMPV6,
            hop_limit: TTL,
            src: src.octets,
            dst: dst.octets,
            icmp: [kind, code, (icmp_check >> 8) as u8, icmp_check as u8],
            unused: mtu.to_be_bytes(),
        }
    }
}

const _: () = assert!(size_of::<ReplyV4>() == IPV4_MIN_LEN + ICMP_LEN);
const _: () = assert!(size_of::<ReplyV6>() == IPV6_LEN + ICMP_LEN);
