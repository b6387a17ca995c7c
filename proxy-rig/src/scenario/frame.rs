//! Frames from packets in words, frames in words again, and the checksums of a whole frame recomputed. Called by the
//! executors; the tests hold it against etherparse.

use std::net::{IpAddr, SocketAddr};

use crc::{CRC_32_ISCSI, Crc};
use proxy_common::net::{
    ETH_LEN, ETH_P_IP, ETH_P_IPV6, Family, Fragment, ICMP_LEN, IPV4_MIN_LEN, IPV6_LEN, Packet, ParseFamily, SCTP,
    SCTP_LEN, TCP, UDP, V4, V6, checksum, checksum_offset, is_icmp, parse_packet, sum_words,
};

use super::notation::{Extras, FragmentSpec, PacketSpec, protocol_word, sctp_chunk_word, tcp_flags_word};

const SRC_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const DST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const FRAGMENT_HEADER: u8 = 44;

/// The frame of a packet in words.
pub(crate) fn build(spec: &PacketSpec) -> Vec<u8> {
    let mut frame = Vec::with_capacity(128 + spec.extras.payload_len);
    frame.extend_from_slice(&DST_MAC);
    frame.extend_from_slice(&SRC_MAC);
    for (ether_type, number) in &spec.extras.vlans {
        frame.extend_from_slice(&ether_type.to_be_bytes());
        frame.extend_from_slice(&number.to_be_bytes());
    }
    let l4 = transport(spec);
    match (spec.src.ip(), spec.dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ipv4(&mut frame, spec, src.octets(), dst.octets(), &l4),
        (IpAddr::V6(src), IpAddr::V6(dst)) => ipv6(&mut frame, spec, src.octets(), dst.octets(), &l4),
        _ => unreachable!("the notation admits one family only"),
    }
    if let Some(len) = spec.extras.cut {
        frame.truncate(len);
    }
    frame
}

/// Header, payload and checksum; of a later fragment, payload alone.
fn transport(spec: &PacketSpec) -> Vec<u8> {
    let letters = || (0..spec.extras.payload_len).map(|i| b'a' + (i % 26) as u8).collect();
    let payload: Vec<u8> = spec.extras.payload.clone().unwrap_or_else(letters);
    if spec.extras.fragment == FragmentSpec::Later {
        return if payload.is_empty() { vec![b'x'; 16] } else { payload };
    }
    let mut l4 = Vec::new();
    let ports = |l4: &mut Vec<u8>| {
        l4.extend_from_slice(&spec.src.port().to_be_bytes());
        l4.extend_from_slice(&spec.dst.port().to_be_bytes());
    };
    match spec.protocol {
        TCP => {
            ports(&mut l4);
            l4.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, spec.tcp_flags, 0x20, 0, 0, 0, 0, 0]);
        }
        UDP => {
            ports(&mut l4);
            let len = (8 + payload.len()) as u16;
            l4.extend_from_slice(&len.to_be_bytes());
            l4.extend_from_slice(&[0, 0]);
        }
        SCTP => {
            ports(&mut l4);
            l4.extend_from_slice(&sctp_header(spec.extras.sctp_chunk, payload.len()));
        }
        // An echo request.
        protocol if is_icmp(protocol) => {
            let [kind, code] = spec.extras.icmp.unwrap_or([if protocol == 1 { 8 } else { 128 }, 0]);
            l4.extend_from_slice(&[kind, code, 0, 0, 0, 7, 0, 1]);
        }
        _ => l4.extend_from_slice(&[0; 8]),
    }
    l4.extend_from_slice(&payload);
    if !spec.extras.no_checksum {
        set_transport_checksum(spec.protocol, &spec.src.ip(), &spec.dst.ip(), &mut l4);
    }
    l4
}

/// Verification tag, checksum (zero) and the fixed part of a chunk: RFC 9260 sections 3.1 and 3.3.
fn sctp_header(chunk: u8, payload_len: usize) -> Vec<u8> {
    let (tag, fixed) = match chunk {
        // INIT: tag, window, streams, first TSN.
        1 => (0, 16),
        2 => (0x0102_0304, 16),
        // DATA: TSN, stream, number in it, payload protocol.
        0 => (0x0102_0304, 12),
        _ => (0x0102_0304, 0),
    };
    let mut bytes = u32::to_be_bytes(tag).to_vec();
    bytes.extend_from_slice(&[0, 0, 0, 0, chunk, 0]);
    bytes.extend_from_slice(&((4 + fixed + payload_len) as u16).to_be_bytes());
    bytes.extend((0..fixed as u8).map(|i| i + 1));
    bytes
}

/// Computes the CRC32c of an SCTP packet, all of it: RFC 9260 section 6.8.
fn set_sctp_checksum(l4: &mut [u8]) {
    if let Some(check) = l4.get_mut(8..12) {
        check.fill(0);
        let crc = Crc::<u32>::new(&CRC_32_ISCSI).checksum(l4);
        l4[8..12].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Computes the checksum of a whole segment, datagram or ICMPv6 message.
fn set_transport_checksum(protocol: u8, src: &IpAddr, dst: &IpAddr, l4: &mut [u8]) {
    let at = match protocol {
        SCTP => return set_sctp_checksum(l4),
        TCP | UDP => checksum_offset(protocol),
        _ if is_icmp(protocol) => 2,
        _ => return,
    };
    if l4.len() < at + 2 {
        return;
    }
    l4[at..at + 2].copy_from_slice(&[0, 0]);
    let mut sum = 0;
    if protocol != proxy_common::net::ICMP {
        for address in [src, dst] {
            sum = match address {
                IpAddr::V4(v4) => sum_words(sum, &v4.octets()),
                IpAddr::V6(v6) => sum_words(sum, &v6.octets()),
            };
        }
        sum += u32::from(protocol) + l4.len() as u32;
    }
    let mut check = checksum(sum, l4);
    if check == 0 && protocol == UDP {
        // RFC 768: zero means "none".
        check = 0xffff;
    }
    l4[at..at + 2].copy_from_slice(&check.to_be_bytes());
}

fn ipv4(frame: &mut Vec<u8>, spec: &PacketSpec, src: [u8; 4], dst: [u8; 4], l4: &[u8]) {
    frame.extend_from_slice(&ETH_P_IP.to_be_bytes());
    let start = frame.len();
    let header_len = IPV4_MIN_LEN + spec.extras.ip_options;
    let fragment: u16 = match spec.extras.fragment {
        FragmentSpec::Whole => 0x4000,
        FragmentSpec::First => 0x2000,
        FragmentSpec::Later => 185,
    };
    let ihl = spec.extras.ihl.unwrap_or((header_len / 4) as u8);
    frame.extend_from_slice(&[0x40 | ihl, 0]);
    frame.extend_from_slice(&spec.extras.stated_len.unwrap_or((header_len + l4.len()) as u16).to_be_bytes());
    frame.extend_from_slice(&(spec.extras.datagram_id as u16).to_be_bytes());
    frame.extend_from_slice(&fragment.to_be_bytes());
    frame.extend_from_slice(&[spec.extras.ttl, spec.protocol, 0, 0]);
    frame.extend_from_slice(&src);
    frame.extend_from_slice(&dst);
    // RFC 791: option 1 is "no operation".
    frame.extend(std::iter::repeat_n(1, spec.extras.ip_options));
    let check = checksum(0, &frame[start..]);
    frame[start + 10..start + 12].copy_from_slice(&check.to_be_bytes());
    frame.extend_from_slice(l4);
}

fn ipv6(frame: &mut Vec<u8>, spec: &PacketSpec, src: [u8; 16], dst: [u8; 16], l4: &[u8]) {
    let mut chain = spec.extras.extension_headers.clone();
    if spec.extras.fragment != FragmentSpec::Whole {
        chain.push(FRAGMENT_HEADER);
    }
    let mut extensions = Vec::new();
    for (i, header) in chain.iter().enumerate() {
        let next = chain.get(i + 1).copied().unwrap_or(spec.protocol);
        extensions.extend_from_slice(&extension(*header, next, &spec.extras));
    }
    frame.extend_from_slice(&ETH_P_IPV6.to_be_bytes());
    frame.extend_from_slice(&[0x60, 0, 0, 0]);
    frame.extend_from_slice(&spec.extras.stated_len.unwrap_or((extensions.len() + l4.len()) as u16).to_be_bytes());
    frame.extend_from_slice(&[chain.first().copied().unwrap_or(spec.protocol), spec.extras.ttl]);
    frame.extend_from_slice(&src);
    frame.extend_from_slice(&dst);
    frame.extend_from_slice(&extensions);
    frame.extend_from_slice(l4);
}

fn extension(header: u8, next: u8, extras: &Extras) -> Vec<u8> {
    match header {
        FRAGMENT_HEADER => {
            let offset: u16 = if extras.fragment == FragmentSpec::First { 1 } else { 185 << 3 };
            let mut bytes = vec![next, 0];
            bytes.extend_from_slice(&offset.to_be_bytes());
            bytes.extend_from_slice(&extras.datagram_id.to_be_bytes());
            bytes
        }
        // AH of 16 bytes counts (16 / 4) - 2 words (RFC 4302 section 2.2).
        51 => [&[next, 2][..], &[0; 14]].concat(),
        // A PadN option of 4 bytes (RFC 8200 section 4.2).
        _ => vec![next, 0, 1, 4, 0, 0, 0, 0],
    }
}

/// Addresses, ports and protocol of a frame, if it is an IP packet.
pub(crate) fn tuple_of(frame: &[u8]) -> Option<(u8, SocketAddr, SocketAddr)> {
    fn read<F: ParseFamily>(frame: &[u8]) -> Option<(u8, SocketAddr, SocketAddr, Packet<F>)>
    where
        F::Addr: Into<IpAddr>,
    {
        let mut packet = Packet::<F>::EMPTY;
        parse_packet(frame, ETH_LEN, &mut packet).ok()?;
        let src = SocketAddr::new(packet.tuple.src.into(), packet.tuple.src_port);
        let dst = SocketAddr::new(packet.tuple.dst.into(), packet.tuple.dst_port);
        Some((packet.protocol, src, dst, packet))
    }
    match ether_type(frame)? {
        V4::ETHERTYPE => read::<V4>(frame).map(|(protocol, src, dst, _)| (protocol, src, dst)),
        V6::ETHERTYPE => read::<V6>(frame).map(|(protocol, src, dst, _)| (protocol, src, dst)),
        _ => None,
    }
}

/// What an ICMP error quotes, as a frame of its own.
pub(super) fn quote_of(frame: &[u8]) -> Option<Vec<u8>> {
    fn start<F: ParseFamily>(frame: &[u8]) -> Option<usize> {
        let mut packet = Packet::<F>::EMPTY;
        parse_packet(frame, ETH_LEN, &mut packet).ok()?;
        packet.icmp_error.then_some(packet.l4_offset as usize + ICMP_LEN)
    }
    let at = match ether_type(frame)? {
        V4::ETHERTYPE => start::<V4>(frame),
        V6::ETHERTYPE => start::<V6>(frame),
        _ => None,
    }?;
    Some([&frame[..ETH_LEN], frame.get(at..)?].concat())
}

/// Protocol and ends of the packet that an ICMP error quotes. Eight bytes of its transport header may be all there is.
pub(super) fn quoted_tuple(frame: &[u8]) -> Option<(u8, SocketAddr, SocketAddr)> {
    let mut quote = quote_of(frame)?;
    // As long as it was before it was cut, and longer than any header that the parser wants to see.
    let stated = match ether_type(&quote)? {
        ETH_P_IP => u16::from_be_bytes([*quote.get(16)?, *quote.get(17)?]).into(),
        _ => IPV6_LEN + usize::from(u16::from_be_bytes([*quote.get(18)?, *quote.get(19)?])),
    };
    quote.resize((quote.len() + 20).max(ETH_LEN + stated), 0);
    tuple_of(&quote)
}

pub(crate) fn ether_type(frame: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]))
}

/// A frame in words, for traces and messages.
pub(crate) fn describe(frame: &[u8]) -> String {
    let Some((protocol, src, dst)) = tuple_of(frame) else {
        return match ether_type(frame) {
            Some(ether_type) => format!("{} bytes, EtherType {ether_type:#06x}", frame.len()),
            None => format!("{} bytes", frame.len()),
        };
    };
    let name = protocol_word(protocol);
    if protocol != TCP && protocol != UDP && protocol != SCTP {
        let about = match quoted_tuple(frame) {
            Some((protocol, src, dst)) => format!(" about {} {src} > {dst}", protocol_word(protocol)),
            None => String::new(),
        };
        return format!("{name} {} > {}{about}", src.ip(), dst.ip());
    }
    let flags = match (protocol, l4_offset(frame)) {
        (SCTP, Some((at, Fragment::Whole | Fragment::First))) => {
            frame.get(at + SCTP_LEN).map(|chunk| sctp_chunk_word(*chunk)).unwrap_or_default()
        }
        (TCP, Some((at, Fragment::Whole | Fragment::First))) => {
            frame.get(at + 13).map(|flags| tcp_flags_word(*flags)).unwrap_or_default()
        }
        _ => "",
    };
    format!("{name} {src} > {dst} {flags}").trim_end().to_owned()
}

pub(super) fn l4_offset(frame: &[u8]) -> Option<(usize, Fragment)> {
    fn read<F: ParseFamily>(frame: &[u8]) -> Option<(usize, Fragment)> {
        let mut packet = Packet::<F>::EMPTY;
        parse_packet(frame, ETH_LEN, &mut packet).ok()?;
        Some((packet.l4_offset as usize, packet.fragment))
    }
    match ether_type(frame)? {
        V4::ETHERTYPE => read::<V4>(frame),
        V6::ETHERTYPE => read::<V6>(frame),
        _ => None,
    }
}

/// True if all checksums that can be judged are right: IPv4 header, and TCP, UDP, SCTP or ICMP of an unfragmented packet.
pub(crate) fn checksums_are_right(frame: &[u8]) -> bool {
    if let Some(quote) = quote_of(frame)
        && (!checksums_are_right(&quote) || !quoted_header_is_right(&quote))
    {
        return false;
    }
    let Some((protocol, src, dst)) = tuple_of(frame) else { return true };
    let v4 = ether_type(frame) == Some(ETH_P_IP);
    let Some((l4, fragment)) = l4_offset(frame) else { return true };
    if v4 && checksum(0, &frame[ETH_LEN..l4.min(frame.len())]) != 0 {
        return false;
    }
    let end = if v4 {
        ETH_LEN + usize::from(u16::from_be_bytes([frame[16], frame[17]]))
    } else {
        ETH_LEN + IPV6_LEN + usize::from(u16::from_be_bytes([frame[18], frame[19]]))
    };
    if fragment != Fragment::Whole || end > frame.len() || l4 > end {
        return true;
    }
    let mut bytes = frame[l4..end].to_vec();
    if protocol == UDP && v4 && bytes.get(6..8) == Some(&[0, 0]) {
        return true;
    }
    set_transport_checksum(protocol, &src.ip(), &dst.ip(), &mut bytes);
    bytes == frame[l4..end]
}

/// The IPv4 header checksum of a quote that may be too short to be parsed.
fn quoted_header_is_right(quote: &[u8]) -> bool {
    let len = |first: u8| usize::from(first & 0x0f) * 4;
    let header = quote.get(ETH_LEN).and_then(|first| quote.get(ETH_LEN..ETH_LEN + len(*first)));
    ether_type(quote) != Some(ETH_P_IP) || header.is_some_and(|header| checksum(0, header) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    #[test]
    fn frames_equal_those_of_etherparse() {
        let mut expected = Vec::new();
        PacketBuilder::ethernet2(SRC_MAC, DST_MAC)
            .ipv6([0xfd; 16], [0xfc; 16], 64)
            .udp(4000, 53)
            .write(&mut expected, b"abcde")
            .unwrap();
        let v6 = |octet: u8| std::net::Ipv6Addr::from([octet; 16]);
        let text = format!("udp [{}]:4000 > [{}]:53 len=5", v6(0xfd), v6(0xfc));
        assert_eq!(build(&text.parse().unwrap()), expected);

        let frame = build(&"tcp 203.0.113.9:40000 > 192.0.2.127:8765 syn".parse().unwrap());
        let sliced = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
        let etherparse::TransportSlice::Tcp(tcp) = sliced.transport.unwrap() else { panic!("not TCP") };
        let etherparse::NetSlice::Ipv4(ip) = sliced.net.unwrap() else { panic!("not IPv4") };
        let (src, dst) = (ip.header().source(), ip.header().destination());
        assert_eq!(tcp.to_header().calc_checksum_ipv4_raw(src, dst, &[]).unwrap(), tcp.checksum());
        assert!(checksums_are_right(&frame));
        assert_eq!(describe(&frame), "tcp 203.0.113.9:40000 > 192.0.2.127:8765 syn");
    }

    #[test]
    fn unusual_packets() {
        for text in [
            "udp 10.0.0.1:1 > 10.0.0.2:2 no-checksum",
            "tcp 10.0.0.1:1 > 10.0.0.2:2 ip-options=8",
            "udp [fd00::1]:1 > [fd00::2]:2 hop-by-hop ah routing destination-options",
            "udp 10.0.0.1:1 > 10.0.0.2:2 first-fragment len=64",
            "sctp 10.0.0.1:1 > 10.0.0.2:2 init len=3",
            "sctp [fd00::1]:1 > [fd00::2]:2 data ah len=900",
        ] {
            let spec: PacketSpec = text.parse().unwrap();
            let frame = build(&spec);
            assert_eq!(tuple_of(&frame), Some((spec.protocol, spec.src, spec.dst)), "{text}");
            assert!(checksums_are_right(&frame), "{text}");
        }
        let mut frame = build(&"sctp 10.0.0.1:1 > 10.0.0.2:2 data len=8".parse().unwrap());
        *frame.last_mut().unwrap() ^= 1;
        assert!(!checksums_are_right(&frame), "SCTP");
        assert_eq!(tuple_of(&build(&"tcp 10.0.0.1:1 > 10.0.0.2:2 ihl=4".parse().unwrap())), None);
        assert_eq!(tuple_of(&build(&"tcp 10.0.0.1:1 > 10.0.0.2:2 vlan=5".parse().unwrap())), None);
    }
}
