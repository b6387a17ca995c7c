//! Addresses, header layouts, the packet parser and checksum arithmetic. No maps, no decisions.

mod address;
mod checksum;
mod crc32c;
mod headers;
mod packet;
mod parse;

pub use address::{Address, Family, Ipv4, Ipv6, V4, V6};
pub use checksum::{Difference, checksum, checksum_replace, fold, sum_words};
pub use crc32c::sctp_checksum_change;
pub use headers::{
    ETH_LEN, ETH_P_8021AD, ETH_P_8021Q, ETH_P_IP, ETH_P_IPV6, ICMP, ICMP_LEN, ICMPV6, IPV4_MIN_LEN, IPV6_LEN, SCTP,
    SCTP_LEN, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, UDP, checksum_len, checksum_offset, sctp_flags,
};
pub use packet::{Fragment, Packet, Tuple};
pub use parse::{
    Bytes, MAX_EXTENSION_HEADERS, ParseError, ParseFamily, is_icmp, parse_packet, parse_quote, transport_len,
};
