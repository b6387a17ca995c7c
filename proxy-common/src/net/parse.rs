//! The parser: bytes in, [`Packet`] out. Generic over where the bytes are, so that the kernel reads the frame in place.

use super::headers::{
    ICMP, ICMP_LEN, ICMPV6, IPV4_MIN_LEN, IPV6_LEN, SCTP, SCTP_LEN, TCP, TCP_SYN, UDP, checksum_len, checksum_offset,
    sctp_flags,
};
use super::{Family, Fragment, Packet, V4, V6};
use bytemuck::{Pod, Zeroable};

/// RFC 9260 section 3.2: type, flags and length.
const CHUNK_HEADER_LEN: usize = 4;
/// RFC 9260 section 3.3.2: the initiate tag is the first field of an INIT chunk.
const INIT_TAG_END: usize = SCTP_LEN + CHUNK_HEADER_LEN + 4;

/// RFC 8200 sets no bound on the chain; real packets carry at most two or three.
pub const MAX_EXTENSION_HEADERS: usize = 6;

/// Read access to a frame.
pub trait Bytes {
    /// The value at byte `offset`, or `None` if the frame ends before its end.
    fn load<T: Pod>(&self, offset: usize) -> Option<T>;
    /// The byte at `offset`, wherever it lies. A segment that will be cut into SCTP packets has no more than the headers in front,
    /// and must not be changed by bringing more there.
    fn peek(&self, offset: usize) -> Option<u8>;
    /// Length of the whole frame: more than what can be loaded if its rest lies elsewhere.
    fn frame_len(&self) -> usize;
    /// True for a segment that will be cut into packets later (GSO). One beyond 64 KiB cannot say how long it is.
    fn is_large_segment(&self) -> bool;
}

impl Bytes for [u8] {
    fn load<T: Pod>(&self, offset: usize) -> Option<T> {
        let end = offset.checked_add(size_of::<T>())?;
        self.get(offset..end).map(bytemuck::pod_read_unaligned)
    }
    fn peek(&self, offset: usize) -> Option<u8> {
        self.get(offset).copied()
    }
    fn frame_len(&self) -> usize {
        self.len()
    }
    fn is_large_segment(&self) -> bool {
        false
    }
}

/// Why a frame was not understood. It is passed on unchanged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ParseError {
    /// Shorter than its headers say, a header length below the minimum, or headers beyond the length that the packet states.
    Malformed,
    /// More than [`MAX_EXTENSION_HEADERS`] extension headers.
    TooManyHeaders,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Ipv4Header {
    version_ihl: u8,
    tos: u8,
    total_len: [u8; 2],
    id: [u8; 2],
    fragment: [u8; 2],
    ttl: u8,
    protocol: u8,
    check: [u8; 2],
    src: [u8; 4],
    dst: [u8; 4],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Ipv6Header {
    version_class_flow: [u8; 4],
    payload_len: [u8; 2],
    next_header: u8,
    hop_limit: u8,
    src: [u8; 16],
    dst: [u8; 16],
}

/// The first eight octets of an IPv6 extension header.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ExtensionHeader {
    next_header: u8,
    len: u8,
    fragment: [u8; 2],
    id: [u8; 4],
}

/// A family whose network header can be parsed.
pub trait ParseFamily: Family {
    /// Where its length field stands in the network header.
    const LEN_OFFSET: usize;
    /// What the length field does not count.
    const NOT_IN_LEN: usize;
    /// Fills addresses, protocol, fragment, datagram id (of a fragment) and `l4_offset`. Returns the length field.
    fn parse_network<B: Bytes + ?Sized>(bytes: &B, packet: &mut Packet<Self>) -> Result<u16, ParseError>;
}

/// How many bytes the packet says that it has behind its network headers.
#[inline(always)]
pub fn transport_len<F: ParseFamily, B: Bytes + ?Sized>(bytes: &B, packet: &Packet<F>) -> Option<u16> {
    let headers = packet.l4_offset.wrapping_sub(packet.l3_offset) as usize;
    let len = packet_len::<F, B>(bytes, packet.l3_offset as usize)?;
    if len < headers { None } else { Some((len - headers) as u16) }
}

/// How long the packet at `l3_offset` says that it is.
#[inline(always)]
fn packet_len<F: ParseFamily, B: Bytes + ?Sized>(bytes: &B, l3_offset: usize) -> Option<usize> {
    let field: [u8; 2] = bytes.load(l3_offset + F::LEN_OFFSET)?;
    Some(u16::from_be_bytes(field) as usize + F::NOT_IN_LEN)
}

/// Where in the frame a packet with this length field ends. Behind it a frame may be padded.
#[inline(always)]
fn packet_end<F: ParseFamily, B: Bytes + ?Sized>(bytes: &B, l3_offset: usize, field: u16) -> Option<usize> {
    let frame_end = bytes.frame_len();
    if field == 0 && bytes.is_large_segment() {
        return Some(frame_end);
    }
    let end = l3_offset + F::NOT_IN_LEN + field as usize;
    if end <= frame_end { Some(end) } else { None }
}

/// Parses the packet whose network header starts at `l3_offset`.
#[inline(always)]
pub fn parse_packet<F: ParseFamily, B: Bytes + ?Sized>(
    bytes: &B,
    l3_offset: usize,
    packet: &mut Packet<F>,
) -> Result<(), ParseError> {
    packet.l3_offset = l3_offset as u16;
    packet.tcp_flags = 0;
    packet.tuple.src_port = 0;
    packet.tuple.dst_port = 0;
    packet.fragment = Fragment::Whole;
    packet.icmp_error = false;
    packet.datagram_id = 0;
    let field = F::parse_network(bytes, packet)?;
    let end = packet_end::<F, B>(bytes, l3_offset, field).ok_or(ParseError::Malformed)?;
    let l4 = packet.l4_offset as usize;
    let later = matches!(packet.fragment, Fragment::Later);
    if l4 + if later { 0 } else { least_len::<F>(packet.protocol) } > end {
        return Err(ParseError::Malformed);
    }
    if later {
        return Ok(());
    }
    match packet.protocol {
        TCP => {
            // The whole header: the checksum must be there as well, or it could not be patched.
            let head: [u8; 20] = bytes.load(l4).ok_or(ParseError::Malformed)?;
            packet.tuple.src_port = u16::from_be_bytes([head[0], head[1]]);
            packet.tuple.dst_port = u16::from_be_bytes([head[2], head[3]]);
            packet.tcp_flags = head[13];
        }
        UDP => {
            let head: [u8; 8] = bytes.load(l4).ok_or(ParseError::Malformed)?;
            packet.tuple.src_port = u16::from_be_bytes([head[0], head[1]]);
            packet.tuple.dst_port = u16::from_be_bytes([head[2], head[3]]);
        }
        SCTP => {
            let head: [u8; SCTP_LEN] = bytes.load(l4).ok_or(ParseError::Malformed)?;
            packet.tuple.src_port = u16::from_be_bytes([head[0], head[1]]);
            packet.tuple.dst_port = u16::from_be_bytes([head[2], head[3]]);
            let chunk = bytes.peek(l4 + SCTP_LEN).ok_or(ParseError::Malformed)?;
            packet.tcp_flags = sctp_flags(chunk);
            // A refusal quotes an INIT as far as its tag, by which the client knows it again.
            if packet.tcp_flags == TCP_SYN && l4 + INIT_TAG_END > end {
                return Err(ParseError::Malformed);
            }
        }
        protocol if protocol == F::ICMP => {
            let head: [u8; ICMP_LEN] = bytes.load(l4).ok_or(ParseError::Malformed)?;
            packet.icmp_error = F::is_icmp_error(head[0]) && matches!(packet.fragment, Fragment::Whole);
        }
        _ => {}
    }
    Ok(())
}

/// How much of its header a packet of `protocol` must carry.
#[inline(always)]
const fn least_len<F: Family>(protocol: u8) -> usize {
    match protocol {
        TCP => 20,
        UDP => 8,
        SCTP => SCTP_LEN + CHUNK_HEADER_LEN,
        _ if protocol == F::ICMP => ICMP_LEN,
        _ => 0,
    }
}

/// Parses the packet that the ICMP error `error` quotes, as far as it must be there: RFC 792 demands eight bytes behind its
/// network header. `None` if it has no ports; else, whether its checksum is there as well.
#[inline(always)]
pub fn parse_quote<F: ParseFamily, B: Bytes + ?Sized>(
    bytes: &B,
    error: &Packet<F>,
    quote: &mut Packet<F>,
) -> Option<bool> {
    quote.l3_offset = error.l4_offset.wrapping_add(ICMP_LEN as u16);
    quote.tcp_flags = 0;
    quote.fragment = Fragment::Whole;
    quote.icmp_error = false;
    quote.datagram_id = 0;
    F::parse_network(bytes, quote).ok()?;
    if !quote.has_ports() {
        return None;
    }
    let l4 = quote.l4_offset as usize;
    // Bytes of the frame behind the packet are none of the quote.
    let end = error.l3_offset as usize + packet_len::<F, B>(bytes, error.l3_offset as usize)?;
    if l4 + 8 > end {
        return None;
    }
    let head: [u8; 8] = bytes.load(l4)?;
    quote.tuple.src_port = u16::from_be_bytes([head[0], head[1]]);
    quote.tuple.dst_port = u16::from_be_bytes([head[2], head[3]]);
    // That of SCTP is of use only with the length that it goes over.
    if quote.protocol == SCTP && transport_len(bytes, quote)? < SCTP_LEN as u16 {
        return Some(false);
    }
    let check_end = l4 + checksum_offset(quote.protocol) + checksum_len(quote.protocol);
    Some(check_end <= end && bytes.load::<[u8; 2]>(check_end - 2).is_some())
}

impl ParseFamily for V4 {
    const LEN_OFFSET: usize = 2;
    const NOT_IN_LEN: usize = 0;

    #[inline(always)]
    fn parse_network<B: Bytes + ?Sized>(bytes: &B, packet: &mut Packet<V4>) -> Result<u16, ParseError> {
        let l3 = packet.l3_offset as usize;
        let header: Ipv4Header = bytes.load(l3).ok_or(ParseError::Malformed)?;
        let header_len = ((header.version_ihl & 0x0f) as usize) * 4;
        if header.version_ihl >> 4 != 4 || header_len < IPV4_MIN_LEN {
            return Err(ParseError::Malformed);
        }
        let fragment = u16::from_be_bytes(header.fragment);
        packet.fragment = match (fragment & 0x1fff, fragment & 0x2000) {
            (0, 0) => Fragment::Whole,
            (0, _) => Fragment::First,
            _ => Fragment::Later,
        };
        packet.datagram_id = u32::from(u16::from_be_bytes(header.id));
        packet.protocol = header.protocol;
        packet.tuple.src = super::Ipv4 { octets: header.src };
        packet.tuple.dst = super::Ipv4 { octets: header.dst };
        packet.l4_offset = (l3 + header_len) as u16;
        Ok(u16::from_be_bytes(header.total_len))
    }
}

// RFC 8200 section 4.1 and RFC 4302 (AH).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

impl ParseFamily for V6 {
    const LEN_OFFSET: usize = 4;
    const NOT_IN_LEN: usize = IPV6_LEN;

    #[inline(always)]
    fn parse_network<B: Bytes + ?Sized>(bytes: &B, packet: &mut Packet<V6>) -> Result<u16, ParseError> {
        let l3 = packet.l3_offset as usize;
        let header: Ipv6Header = bytes.load(l3).ok_or(ParseError::Malformed)?;
        if header.version_class_flow[0] >> 4 != 6 {
            return Err(ParseError::Malformed);
        }
        packet.tuple.src = super::Ipv6 { octets: header.src };
        packet.tuple.dst = super::Ipv6 { octets: header.dst };
        let mut protocol = header.next_header;
        let mut offset = l3 + IPV6_LEN;
        for _ in 0..MAX_EXTENSION_HEADERS {
            if !matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION) {
                break;
            }
            let extension: ExtensionHeader = bytes.load(offset).ok_or(ParseError::Malformed)?;
            offset += match protocol {
                FRAGMENT => {
                    packet.datagram_id = u32::from_be_bytes(extension.id);
                    let fragment = u16::from_be_bytes(extension.fragment);
                    packet.fragment = match (fragment & 0xfff8, fragment & 1) {
                        // An atomic fragment (RFC 6946) is a whole packet.
                        (0, 0) => Fragment::Whole,
                        (0, _) => Fragment::First,
                        _ => Fragment::Later,
                    };
                    8
                }
                AUTHENTICATION => (extension.len as usize + 2) * 4,
                _ => (extension.len as usize + 1) * 8,
            };
            protocol = extension.next_header;
            if matches!(packet.fragment, Fragment::Later) {
                break;
            }
        }
        if matches!(protocol, HOP_BY_HOP | ROUTING | AUTHENTICATION | DESTINATION)
            && !matches!(packet.fragment, Fragment::Later)
        {
            return Err(ParseError::TooManyHeaders);
        }
        packet.protocol = protocol;
        packet.l4_offset = offset as u16;
        Ok(u16::from_be_bytes(header.payload_len))
    }
}

/// True for the protocol numbers of ICMP and ICMPv6, whatever the message says.
#[inline(always)]
#[must_use]
pub fn is_icmp(protocol: u8) -> bool {
    protocol == ICMP || protocol == ICMPV6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{ETH_LEN, Ipv4, Ipv6, TCP_SYN};
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn parse<F: ParseFamily>(frame: &[u8]) -> Result<Packet<F>, ParseError> {
        let mut packet = Packet::EMPTY;
        parse_packet(frame, ETH_LEN, &mut packet).map(|()| packet)
    }

    #[test]
    fn tcp_over_ipv4() {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv4([10, 0, 0, 1], [10, 96, 0, 10], 64)
            .tcp(40000, 80, 1, 100)
            .syn()
            .write(&mut frame, b"x")
            .unwrap();
        let packet = parse::<V4>(&frame).unwrap();
        assert_eq!(packet.tuple.src, Ipv4 { octets: [10, 0, 0, 1] });
        assert_eq!((packet.tuple.src_port, packet.tuple.dst_port), (40000, 80));
        assert_eq!((packet.tcp_flags, packet.l4_offset), (TCP_SYN, 34));
        assert!(packet.is_syn());
        for len in 0..frame.len() - 1 {
            // A cut frame is malformed, never a panic; the last payload byte is not needed.
            assert_eq!(parse::<V4>(&frame[..len]).is_err(), len < 54, "cut at {len}");
        }
    }

    #[test]
    fn udp_behind_extension_headers() {
        let mut frame = vec![0u8; ETH_LEN];
        frame.extend_from_slice(&[0x60, 0, 0, 0, 0, 24, HOP_BY_HOP, 64]);
        frame.extend_from_slice(&[1; 16]);
        frame.extend_from_slice(&[2; 16]);
        frame.extend_from_slice(&[FRAGMENT, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend_from_slice(&[UDP, 0, 0, 1, 0, 0, 0, 7]);
        frame.extend_from_slice(&[0x9c, 0x40, 0, 53, 0, 8, 0, 0]);
        let packet = parse::<V6>(&frame).unwrap();
        assert_eq!(packet.tuple.dst, Ipv6 { octets: [2; 16] });
        assert_eq!((packet.protocol, packet.tuple.src_port, packet.tuple.dst_port), (UDP, 40000, 53));
        assert_eq!((packet.fragment, packet.datagram_id), (Fragment::First, 7));
    }

    #[test]
    fn a_chain_beyond_the_bound_is_named() {
        let mut frame = vec![0u8; ETH_LEN];
        frame.extend_from_slice(&[0x60, 0, 0, 0, 0, 64, DESTINATION, 64]);
        frame.extend_from_slice(&[1; 32]);
        for _ in 0..8 {
            frame.extend_from_slice(&[DESTINATION, 0, 0, 0, 0, 0, 0, 0]);
        }
        assert_eq!(parse::<V6>(&frame), Err(ParseError::TooManyHeaders));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(frame in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse::<V4>(&frame);
            let _ = parse::<V6>(&frame);
        }
    }
}
