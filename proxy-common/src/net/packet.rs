//! What the parser found in a packet.

use super::{Address, Family, SCTP, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, UDP};

/// Addresses and ports of a packet.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuple<F: Family> {
    pub src: F::Addr,
    pub dst: F::Addr,
    pub src_port: u16,
    pub dst_port: u16,
}

/// RFC 791 section 3.2 and RFC 8200 section 4.5.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragment {
    Whole,
    /// Offset zero, more to come: the ports are here.
    First,
    /// The ports are in another packet; ports read as zero.
    Later,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet<F: Family> {
    pub tuple: Tuple<F>,
    pub protocol: u8,
    /// RFC 9293 flags; of SCTP, [`sctp_flags`](super::headers::sctp_flags); zero for all else.
    pub tcp_flags: u8,
    pub fragment: Fragment,
    /// An ICMP message that quotes another packet.
    pub icmp_error: bool,
    /// Of a fragment: what it has in common with the others of its datagram, beside the addresses.
    pub datagram_id: u32,
    /// Byte offsets from the start of the frame.
    pub l3_offset: u16,
    pub l4_offset: u16,
}

impl<F: Family> Packet<F> {
    pub const EMPTY: Self = Self {
        tuple: Tuple { src: F::Addr::ZERO, dst: F::Addr::ZERO, src_port: 0, dst_port: 0 },
        protocol: 0,
        tcp_flags: 0,
        fragment: Fragment::Whole,
        icmp_error: false,
        datagram_id: 0,
        l3_offset: 0,
        l4_offset: 0,
    };

    /// True for what Weir translates: TCP, UDP or SCTP with ports.
    #[inline(always)]
    #[must_use]
    pub fn has_ports(&self) -> bool {
        matches!(self.protocol, TCP | UDP | SCTP) && !matches!(self.fragment, Fragment::Later)
    }

    /// A TCP segment, or a packet of an SCTP association: there is a first packet, and a last one.
    #[inline(always)]
    #[must_use]
    pub fn is_of_connection(&self) -> bool {
        self.protocol == TCP || self.protocol == SCTP
    }

    /// The packet that opens a connection: SYN alone, whatever else but ACK, RST and FIN is set; an INIT chunk.
    #[inline(always)]
    #[must_use]
    pub fn is_syn(&self) -> bool {
        self.is_of_connection() && self.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN) == TCP_SYN
    }
}
