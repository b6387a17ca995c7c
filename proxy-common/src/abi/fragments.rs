//! FRAGS_V4, FRAGS_V6: a datagram in fragments, as it stands at the hook -> what was done to its first fragment. The later
//! ones carry no ports.

use super::map_types;
use crate::net::{Address, Family, Packet, V4, V6};

/// RFC 791 section 3.2 compares addresses, identification and protocol; RFC 8200 section 4.5 the first two.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct FragKey<F: Family> {
    pub src: F::Addr,
    pub dst: F::Addr,
    pub id: u32,
    /// IPv6: 0. A later fragment names the first extension header instead of the protocol.
    pub protocol: u8,
    /// 1 at egress: a reply passes ingress as it is, and must not be taken there for what egress made of its first fragment.
    pub egress: u8,
    pub zero: [u8; 2],
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragEntry<F: Family> {
    /// The addresses that the first fragment left with.
    pub src: F::Addr,
    pub dst: F::Addr,
    /// Target of a redirect; 0: it was passed on.
    pub ifindex: u32,
    /// Backend id.
    pub backend: u32,
    /// Seconds since boot.
    pub seen_s: u32,
    /// [`FragKey::check`] of the key: an LRU element may be reused between look-up and read.
    pub check: u32,
    /// 1: redirected out of the interface that it came in by, link addresses swapped.
    pub bounce: u8,
    pub zero: [u8; 3],
}

impl<F: Family> FragKey<F> {
    pub const EMPTY: Self =
        Self { src: F::Addr::ZERO, dst: F::Addr::ZERO, id: 0, protocol: 0, egress: 0, zero: [0; 2] };

    #[inline(always)]
    #[must_use]
    pub fn of(packet: &Packet<F>, egress: bool) -> Self {
        let protocol = if F::VERSION == 4 { packet.protocol } else { 0 };
        Self {
            src: packet.tuple.src,
            dst: packet.tuple.dst,
            id: packet.datagram_id,
            protocol,
            egress: u8::from(egress),
            zero: [0; 2],
        }
    }

    /// As [`FlowKey::check`](super::FlowKey::check).
    #[inline(always)]
    #[must_use]
    pub fn check(&self) -> u32 {
        let mix = |state: u32, word: u32| state.rotate_left(7) ^ word;
        let state = self.dst.fold(self.src.fold(0, mix), mix);
        mix(mix(state, self.id), u32::from(self.protocol) << 8 | u32::from(self.egress) << 1) | 1
    }
}

impl<F: Family> FragEntry<F> {
    pub const EMPTY: Self = Self {
        src: F::Addr::ZERO,
        dst: F::Addr::ZERO,
        ifindex: 0,
        backend: 0,
        seen_s: 0,
        check: 0,
        bounce: 0,
        zero: [0; 3],
    };
}

map_types!(FragKey<V4> = 16, FragKey<V6> = 40, FragEntry<V4> = 28, FragEntry<V6> = 52);
