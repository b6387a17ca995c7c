//! What a verdict does to the bytes of a frame, computed without the kernel: translation by incremental checksum updates,
//! and the ICMP error of a refusal. Written apart from the kernel programs, which must come to the same bytes.

use crc::{CRC_32_ISCSI, Crc};
use proxy_common::{
    lb::{Rewrite, Work},
    net::{
        ETH_LEN, Family, Fragment, ICMP, ICMP_LEN, ICMPV6, IPV4_MIN_LEN, IPV6_LEN, Packet, SCTP, SCTP_LEN, UDP, V4,
        checksum, checksum_offset, checksum_replace, sum_words,
    },
};

/// RFC 792 and RFC 4443 section 3.1: type and code of "port unreachable".
const PORT_UNREACHABLE_V4: [u8; 2] = [3, 3];
const PORT_UNREACHABLE_V6: [u8; 2] = [1, 4];
/// "Fragmentation needed" and "packet too big" (RFC 4443 section 3.2).
const TOO_BIG_V4: [u8; 2] = [3, 4];
const TOO_BIG_V6: [u8; 2] = [2, 0];
const REPLY_TTL: u8 = 64;
/// How much of the refused packet's transport header goes back.
const QUOTED_UDP: usize = 8;
const QUOTED_OTHER: usize = 20;
/// The longest part of a packet that a program can sum: 40 + 64 bytes of IPv6 headers and 20 of TCP.
const MAX_QUOTE: usize = 124;

/// Writes the tuple of `rewrite` into the frame and brings the checksums up to date.
pub(super) fn apply<F: Family>(frame: &mut [u8], packet: &Packet<F>, rewrite: &Rewrite<F>) {
    if rewrite.changed != 0 {
        let l4 = packet.l4_offset as usize;
        let l3 = packet.l3_offset as usize;
        let addresses = l3 + if F::VERSION == 4 { 12 } else { 8 };
        let address_len = size_of::<F::Addr>();
        let old_addresses = frame[addresses..addresses + 2 * address_len].to_vec();
        let mut new_addresses = bytemuck::bytes_of(&rewrite.tuple.src).to_vec();
        new_addresses.extend_from_slice(bytemuck::bytes_of(&rewrite.tuple.dst));
        frame[addresses..addresses + 2 * address_len].copy_from_slice(&new_addresses);
        if F::VERSION == 4 {
            replace_checksum(frame, l3 + 10, &old_addresses, &new_addresses, false);
        }
        if packet.fragment == Fragment::Later {
            // Ports and checksum are in the first fragment.
            return bounce(frame, rewrite);
        }
        let old_ports: [u8; 4] = frame[l4..l4 + 4].try_into().expect("invariant: the parser saw the ports");
        let mut new_ports = [0; 4];
        new_ports[..2].copy_from_slice(&rewrite.tuple.src_port.to_be_bytes());
        new_ports[2..].copy_from_slice(&rewrite.tuple.dst_port.to_be_bytes());
        frame[l4..l4 + 4].copy_from_slice(&new_ports);
        if packet.protocol == SCTP {
            let len = l3 + packet_len::<F>(&frame[l3..]) - l4;
            replace_sctp_checksum(frame, l4, old_ports, new_ports, len);
            return bounce(frame, rewrite);
        }
        let udp = packet.protocol == UDP;
        let at = l4 + checksum_offset(packet.protocol);
        // RFC 768: a sender that computed no checksum sends zero, and it stays so.
        if !(udp && frame[at..at + 2] == [0, 0]) {
            let old = [&old_addresses[..], &old_ports].concat();
            let new = [&new_addresses[..], &new_ports].concat();
            replace_checksum(frame, at, &old, &new, udp);
        }
    }
    bounce(frame, rewrite);
}

fn bounce<F: Family>(frame: &mut [u8], rewrite: &Rewrite<F>) {
    if rewrite.bounce {
        swap_link_addresses(frame);
    }
}

fn replace_checksum(frame: &mut [u8], at: usize, old: &[u8], new: &[u8], udp: bool) {
    let check = checksum_replace(u16::from_be_bytes([frame[at], frame[at + 1]]), old, new);
    let check = if check == 0 && udp { 0xffff } else { check };
    frame[at..at + 2].copy_from_slice(&check.to_be_bytes());
}

/// A CRC is linear: to the checksum of a packet of `len` bytes, from whose start its ports have changed, the CRC of what has
/// changed is added. (And that of nothing at all, since each CRC has a constant in it.)
fn replace_sctp_checksum(frame: &mut [u8], l4: usize, old: [u8; 4], new: [u8; 4], len: usize) {
    let crc = Crc::<u32>::new(&CRC_32_ISCSI);
    let mut changed = vec![0; len];
    let nothing = crc.checksum(&changed);
    for i in 0..4 {
        changed[i] = old[i] ^ new[i];
    }
    let patch = (crc.checksum(&changed) ^ nothing).to_le_bytes();
    for (byte, patch) in frame[l4 + 8..l4 + 12].iter_mut().zip(patch) {
        *byte ^= patch;
    }
}

fn swap_link_addresses(frame: &mut [u8]) {
    let (a, b) = frame.split_at_mut(6);
    a.swap_with_slice(&mut b[..6]);
}

/// Translates an ICMP error and the packet that it quotes.
pub(super) fn translate_error<F: Family>(frame: &mut [u8], work: &Work<F>) {
    let (l3, l4) = (work.packet.l3_offset as usize, work.packet.l4_offset as usize);
    let end = (l3 + packet_len::<F>(&frame[l3..])).min(frame.len());
    let before = frame[l4 + ICMP_LEN..end].to_vec();
    translate_quote(&mut frame[..end], work);
    let mut old = before;
    let mut new = frame[l4 + ICMP_LEN..end].to_vec();
    if old.len() % 2 == 1 {
        old.push(0);
        new.push(0);
    }
    let old_addresses = put_addresses(frame, l3, &work.rewrite);
    let new_addresses = addresses_of(&work.rewrite);
    if F::VERSION == 4 {
        replace_checksum(frame, l3 + 10, &old_addresses, &new_addresses, false);
    } else {
        old.extend_from_slice(&old_addresses);
        new.extend_from_slice(&new_addresses);
    }
    replace_checksum(frame, l4 + 2, &old, &new, false);
    bounce(frame, &work.rewrite);
}

/// `frame` ends where the error ends.
fn translate_quote<F: Family>(frame: &mut [u8], work: &Work<F>) {
    let (l3, l4) = (work.quote.l3_offset as usize, work.quote.l4_offset as usize);
    let mut old = put_addresses(frame, l3, &work.quoted);
    let mut new = addresses_of(&work.quoted);
    if F::VERSION == 4 {
        replace_checksum(frame, l3 + 10, &old, &new, false);
    }
    let old_ports: [u8; 4] = frame[l4..l4 + 4].try_into().expect("invariant: the parser saw the ports");
    old.extend_from_slice(&old_ports);
    new.extend_from_slice(&work.quoted.tuple.src_port.to_be_bytes());
    new.extend_from_slice(&work.quoted.tuple.dst_port.to_be_bytes());
    frame[l4..l4 + 4].copy_from_slice(&new[new.len() - 4..]);
    if work.quote.protocol == SCTP {
        // Of the packet as it was before it was cut.
        let len = (l3 + packet_len::<F>(&frame[l3..])).saturating_sub(l4);
        if l4 + SCTP_LEN <= frame.len() && len >= SCTP_LEN {
            let new_ports = new[new.len() - 4..].try_into().expect("invariant: four bytes");
            replace_sctp_checksum(frame, l4, old_ports, new_ports, len);
        }
        return;
    }
    let at = l4 + checksum_offset(work.quote.protocol);
    let udp = work.quote.protocol == UDP;
    if at + 2 <= frame.len() && !(udp && frame[at..at + 2] == [0, 0]) {
        replace_checksum(frame, at, &old, &new, udp);
    }
}

/// The length that the packet at the start of `bytes` states.
fn packet_len<F: Family>(bytes: &[u8]) -> usize {
    let field = |at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    if F::VERSION == 4 { field(2) } else { field(4) + IPV6_LEN }
}

fn addresses_of<F: Family>(rewrite: &Rewrite<F>) -> Vec<u8> {
    [bytemuck::bytes_of(&rewrite.tuple.src), bytemuck::bytes_of(&rewrite.tuple.dst)].concat()
}

/// Writes the addresses of `rewrite` into the network header at `l3`; returns those that were there.
fn put_addresses<F: Family>(frame: &mut [u8], l3: usize, rewrite: &Rewrite<F>) -> Vec<u8> {
    let at = l3 + if F::VERSION == 4 { 12 } else { 8 };
    let new = addresses_of(rewrite);
    let old = frame[at..at + new.len()].to_vec();
    frame[at..at + new.len()].copy_from_slice(&new);
    old
}

/// The port unreachable message that answers the frame: from the frontend to the client, back the way it came. With an `mtu`,
/// the one that says that it is too big. Nothing if the headers are too long to be quoted.
pub(super) fn refuse<F: Family>(frame: &[u8], packet: &Packet<F>, mtu: Option<u32>) -> Option<Vec<u8>> {
    let l3 = packet.l3_offset as usize;
    let quoted_l4 = if packet.protocol == UDP { QUOTED_UDP } else { QUOTED_OTHER };
    let end = packet.l4_offset as usize + quoted_l4;
    if end - l3 > MAX_QUOTE {
        return None;
    }
    let quote = &frame[l3..frame.len().min(end)];
    let mut reply = frame[..ETH_LEN].to_vec();
    swap_link_addresses(&mut reply);
    let src = bytemuck::bytes_of(&packet.tuple.dst);
    let dst = bytemuck::bytes_of(&packet.tuple.src);
    let icmp_len = 8 + quote.len();
    if F::VERSION == V4::VERSION {
        reply.extend_from_slice(&[0x45, 0]);
        reply.extend_from_slice(&((IPV4_MIN_LEN + icmp_len) as u16).to_be_bytes());
        reply.extend_from_slice(&[0, 0, 0, 0, REPLY_TTL, ICMP, 0, 0]);
    } else {
        reply.extend_from_slice(&[0x60, 0, 0, 0]);
        reply.extend_from_slice(&(icmp_len as u16).to_be_bytes());
        reply.extend_from_slice(&[ICMPV6, REPLY_TTL]);
    }
    reply.extend_from_slice(src);
    reply.extend_from_slice(dst);
    if F::VERSION == V4::VERSION {
        let check = checksum(0, &reply[ETH_LEN..]);
        reply[ETH_LEN + 10..ETH_LEN + 12].copy_from_slice(&check.to_be_bytes());
    }
    let icmp = reply.len();
    reply.extend_from_slice(match (F::VERSION, mtu) {
        (4, None) => &PORT_UNREACHABLE_V4,
        (4, Some(_)) => &TOO_BIG_V4,
        (_, None) => &PORT_UNREACHABLE_V6,
        (_, Some(_)) => &TOO_BIG_V6,
    });
    reply.extend_from_slice(&[0; 2]);
    reply.extend_from_slice(&mtu.unwrap_or(0).to_be_bytes());
    reply.extend_from_slice(quote);
    let pseudo = if F::VERSION == 4 {
        0
    } else {
        debug_assert_eq!(icmp, ETH_LEN + IPV6_LEN);
        sum_words(sum_words(0, src), dst) + u32::from(ICMPV6) + icmp_len as u32
    };
    let check = checksum(pseudo, &reply[icmp..]);
    reply[icmp + 2..icmp + 4].copy_from_slice(&check.to_be_bytes());
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::super::frame::{build, checksums_are_right};
    use super::super::notation::PacketSpec;
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;
    use proxy_common::net::{Ipv4, Ipv6, ParseFamily, V6, parse_packet};
    use std::net::{IpAddr, SocketAddr};

    const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);

    /// The frame as etherparse builds it.
    fn by_etherparse(tcp: bool, src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Vec<u8> {
        let link = PacketBuilder::ethernet2(MACS.0, MACS.1);
        let net = match (src.ip(), dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => link.ipv4(src.octets(), dst.octets(), 64),
            (IpAddr::V6(src), IpAddr::V6(dst)) => link.ipv6(src.octets(), dst.octets(), 64),
            _ => unreachable!("one family"),
        };
        let mut frame = Vec::new();
        if tcp {
            net.tcp(src.port(), dst.port(), 1, 1024).syn().write(&mut frame, payload).unwrap();
        } else {
            net.udp(src.port(), dst.port()).write(&mut frame, payload).unwrap();
        }
        frame
    }

    fn rewritten<F: ParseFamily>(mut frame: Vec<u8>, src: (F::Addr, u16), dst: (F::Addr, u16)) -> Vec<u8> {
        let mut packet = Packet::<F>::EMPTY;
        parse_packet(&frame[..], ETH_LEN, &mut packet).unwrap();
        let mut rewrite = Rewrite::<F>::NONE;
        rewrite.start(&packet);
        rewrite.set_src(src.0, src.1);
        rewrite.set_dst(dst.0, dst.1);
        apply(&mut frame, &packet, &rewrite);
        frame
    }

    proptest! {
        #[test]
        fn equals_the_packet_built_anew(
            addresses in any::<[[u8; 16]; 4]>(),
            ports in any::<[u16; 4]>(),
            tcp in any::<bool>(),
            payload in prop::collection::vec(any::<u8>(), 0..90),
        ) {
            let v4 = |i: usize| Ipv4 { octets: addresses[i][..4].try_into().unwrap() };
            let v6 = |i: usize| Ipv6 { octets: addresses[i] };
            let at4 = |i: usize| SocketAddr::new(v4(i).into(), ports[i]);
            let at6 = |i: usize| SocketAddr::new(v6(i).into(), ports[i]);
            let frame = rewritten::<V4>(by_etherparse(tcp, at4(0), at4(1), &payload), (v4(2), ports[2]), (v4(3), ports[3]));
            prop_assert_eq!(frame, by_etherparse(tcp, at4(2), at4(3), &payload));
            let frame = rewritten::<V6>(by_etherparse(tcp, at6(0), at6(1), &payload), (v6(2), ports[2]), (v6(3), ports[3]));
            prop_assert_eq!(frame, by_etherparse(tcp, at6(2), at6(3), &payload));
        }
    }

    #[test]
    fn a_refusal_is_sound_and_cut() {
        for (text, len) in [
            ("tcp 203.0.113.9:40000 > 10.96.0.10:80 syn len=900", ETH_LEN + 28 + 40),
            ("udp 203.0.113.9:40000 > 10.96.0.10:80 len=900 ip-options=8", ETH_LEN + 28 + 36),
        ] {
            let frame = build(&text.parse::<PacketSpec>().unwrap());
            let mut packet = Packet::<V4>::EMPTY;
            parse_packet(&frame[..], ETH_LEN, &mut packet).unwrap();
            let reply = refuse(&frame, &packet, None).unwrap();
            assert_eq!(reply.len(), len, "{text}");
            assert!(checksums_are_right(&reply));
            assert_eq!((&reply[..6], &reply[6..12]), (&frame[6..12], &frame[..6]), "sent back on the link");
        }
    }
}
