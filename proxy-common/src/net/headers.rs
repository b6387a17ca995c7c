//! Protocol numbers, lengths and flags. Ports are in host byte order everywhere above this module.

/// Ethernet II header: two addresses and the EtherType.
pub const ETH_LEN: usize = 14;
pub const ETH_P_IP: u16 = 0x0800;
pub const ETH_P_IPV6: u16 = 0x86dd;

/// RFC 791: IHL is at least five words.
pub const IPV4_MIN_LEN: usize = 20;
/// RFC 8200 section 3.
pub const IPV6_LEN: usize = 40;

/// Type, code, checksum and one word more: RFC 792, RFC 4443. Errors quote the packet behind it.
pub const ICMP_LEN: usize = 8;

// IANA protocol numbers.
pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;
pub const SCTP: u8 = 132;

// RFC 9293 section 3.1, the flags octet.
pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_ACK: u8 = 0x10;

/// Where the checksum stands in the header of `protocol`: RFC 9293 and RFC 768.
#[inline(always)]
#[must_use]
pub const fn checksum_offset(protocol: u8) -> usize {
    if protocol == TCP { 16 } else { 6 }
}
