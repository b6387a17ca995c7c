//! Protocol numbers, lengths and flags. Ports are in host byte order everywhere above this module.

/// Ethernet II header: two addresses and the EtherType.
pub const ETH_LEN: usize = 14;
pub const ETH_P_IP: u16 = 0x0800;
pub const ETH_P_IPV6: u16 = 0x86dd;
/// IEEE 802.1Q and 802.1ad: VLAN tags of customers and of providers.
pub const ETH_P_8021Q: u16 = 0x8100;
pub const ETH_P_8021AD: u16 = 0x88a8;

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

/// Ports, verification tag and checksum: RFC 9260 section 3.1. Chunks follow.
pub const SCTP_LEN: usize = 12;

// RFC 9260 section 3.2, chunk types.
const SCTP_INIT: u8 = 1;
const SCTP_INIT_ACK: u8 = 2;
const SCTP_ABORT: u8 = 6;
const SCTP_SHUTDOWN_COMPLETE: u8 = 14;

/// What an SCTP packet means to its association, in TCP's flags. INIT, INIT ACK and SHUTDOWN COMPLETE are alone in their packet
/// (RFC 9260 section 6.10). An ABORT behind another chunk is not seen.
#[inline(always)]
#[must_use]
pub fn sctp_flags(first_chunk: u8) -> u8 {
    SCTP_FLAGS[first_chunk as usize]
}

// A table and no match: the verifier would follow each known value through all that comes after.
static SCTP_FLAGS: [u8; 256] = {
    let mut flags = [TCP_ACK; 256];
    flags[SCTP_INIT as usize] = TCP_SYN;
    flags[SCTP_INIT_ACK as usize] = TCP_SYN | TCP_ACK;
    flags[SCTP_ABORT as usize] = TCP_RST;
    flags[SCTP_SHUTDOWN_COMPLETE as usize] = TCP_RST;
    flags
};

/// Where the checksum stands in the header of `protocol`: RFC 9293, RFC 768 and RFC 9260.
#[inline(always)]
#[must_use]
pub const fn checksum_offset(protocol: u8) -> usize {
    match protocol {
        TCP => 16,
        SCTP => 8,
        _ => 6,
    }
}

/// How long it is.
#[inline(always)]
#[must_use]
pub const fn checksum_len(protocol: u8) -> usize {
    if protocol == SCTP { 4 } else { 2 }
}
