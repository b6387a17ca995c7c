//! CONNTRACK_V4, CONNTRACK_V6: the tuple of a packet, as it stands at the hook, -> what must be done with it.
//! SNAT_V4, SNAT_V6: the tuple of a reply to one of our source ports -> the client.
//! NEW_FLOWS_V4, NEW_FLOWS_V6, NEW_SNAT_V4, NEW_SNAT_V6: the same for flows of which only one side was heard. A flood of SYNs
//! fills these tables and evicts no established flow.
//!
//! A flow has one [`FlowKind::Forward`] entry (client -> frontend), one [`FlowKind::Reply`] entry (backend -> client) and, if
//! the source is translated on the way out, one [`FlowKind::Source`] entry (client -> backend) with its SNAT entry.

use super::map_types;
use crate::net::{Address, Family, Packet, V4, V6};

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct FlowKey<F: Family> {
    pub src: F::Addr,
    pub dst: F::Addr,
    pub src_port: u16,
    pub dst_port: u16,
    pub protocol: u8,
    pub zero: [u8; 3],
}

#[cfg_attr(not(feature = "abi-next"), repr(u8))]
#[cfg_attr(feature = "abi-next", repr(u16))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlowKind {
    None = 0,
    /// client -> frontend: DNAT.
    Forward = 1,
    /// backend -> client: the source becomes the frontend again.
    Reply = 2,
    /// client -> backend on the way out: SNAT.
    Source = 3,
}

#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlowState {
    None = 0,
    /// A SYN or a first datagram was seen.
    New = 1,
    Established = 2,
    FinFromClient = 3,
    FinFromBackend = 4,
    /// FIN both ways, or RST: the tuple may be used anew at once.
    Closed = 5,
}

/// The source becomes an address of this node on the way out.
pub const FLOW_SNAT: u8 = 1;
/// The backend is the client itself.
pub const FLOW_HAIRPIN: u8 = 2;
/// The client is a socket of this node: translated at egress, reversed at ingress.
pub const FLOW_OWN: u8 = 4;
/// Only one side was heard yet, or the client has not answered the backend: a spoofed client never does.
pub const FLOW_UNCONFIRMED: u8 = 8;
/// Of the forward half: LOADS counts it for its backend until it is closed.
pub const FLOW_COUNTED: u8 = 16;

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow<F: Family> {
    pub frontend: F::Addr,
    pub backend: F::Addr,
    /// The source address that the backend sees; zero while it is not chosen yet.
    pub source: F::Addr,
    pub frontend_port: u16,
    pub backend_port: u16,
    /// The source port that the backend sees; 0 while it is not chosen yet.
    pub source_port: u16,
    /// The client's own; in the forward half of a hairpin flow, as the stack sees it.
    pub client_port: u16,
    pub backend_id: u32,
    /// The backend's generation at selection.
    pub generation: u32,
    /// Service-port id.
    pub service: u32,
    /// Interface by which the client's packets come in; 0 for the node's own.
    pub ifindex: u32,
    /// Seconds since boot.
    pub last_seen_s: u32,
    /// When the other half was last looked after.
    pub healed_s: u32,
    /// When the flow began; [`Self::EMPTY`] has what is taken over from a layout that does not know it.
    #[cfg(feature = "abi-next")]
    pub opened_s: u32,
    /// [`FlowKey::check`] of the key: an LRU element may be reused between look-up and read.
    pub check: u32,
    pub kind: FlowKind,
    pub state: FlowState,
    /// Bits `FLOW_*`.
    pub flags: u8,
    #[cfg(not(feature = "abi-next"))]
    pub zero: u8,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnatEntry<F: Family> {
    pub client_port: u16,
    pub state: FlowState,
    /// Bits `FLOW_*`.
    pub flags: u8,
    /// Seconds since boot; of a closed entry, when it was closed.
    pub last_seen_s: u32,
    pub client: F::Addr,
    /// See [`Flow::check`].
    pub check: u32,
}

impl<F: Family> FlowKey<F> {
    pub const EMPTY: Self =
        Self { src: F::Addr::ZERO, dst: F::Addr::ZERO, src_port: 0, dst_port: 0, protocol: 0, zero: [0; 3] };

    #[inline(always)]
    #[must_use]
    pub fn new(src: F::Addr, src_port: u16, dst: F::Addr, dst_port: u16, protocol: u8) -> Self {
        Self { src, dst, src_port, dst_port, protocol, zero: [0; 3] }
    }

    #[inline(always)]
    #[must_use]
    pub fn of(packet: &Packet<F>) -> Self {
        let t = &packet.tuple;
        Self::new(t.src, t.src_port, t.dst, t.dst_port, packet.protocol)
    }

    /// A cheap digest that tells two keys apart well enough to notice a reused element. Never zero.
    #[inline(always)]
    #[must_use]
    pub fn check(&self) -> u32 {
        let mix = |state: u32, word: u32| state.rotate_left(7) ^ word;
        let state = self.dst.fold(self.src.fold(0, mix), mix);
        let ports = u32::from(self.src_port) << 16 | u32::from(self.dst_port);
        // Made here and now. It is compared after a look-up, and LLVM would rather keep all words of the key for it on the stack,
        // of which Linux 6.1 gives 512 bytes to all frames of a call chain.
        core::hint::black_box(mix(mix(state, ports), u32::from(self.protocol)) | 1)
    }

    /// Hash for selection: equal on every node and in every process that has the same `seed`.
    #[inline(always)]
    #[must_use]
    pub fn hash(&self, seed: u32) -> u32 {
        let state = self.dst.fold(self.src.fold(u64::from(seed), mix), mix);
        let ports = u32::from(self.src_port) << 16 | u32::from(self.dst_port);
        (mix(mix(state, ports), u32::from(self.protocol)) >> 16) as u32
    }
}

impl<F: Family> SnatEntry<F> {
    /// The first eight bytes as they stand in memory: another owner at another time has another word, so two CPUs that want the same
    /// port compare and swap it. Elements of a map are aligned to eight bytes.
    #[inline(always)]
    #[must_use]
    pub fn word(&self) -> u64 {
        let ([p0, p1], [t0, t1, t2, t3]) = (self.client_port.to_ne_bytes(), self.last_seen_s.to_ne_bytes());
        u64::from_ne_bytes([p0, p1, self.state as u8, self.flags, t0, t1, t2, t3])
    }
}

/// One round of the hashes for selection.
#[inline(always)]
#[must_use]
pub(crate) fn mix(state: u64, word: u32) -> u64 {
    // Multiply-xorshift; the constant is 2^64 divided by the golden ratio, made odd.
    let state = (state ^ u64::from(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    state ^ (state >> 32)
}

impl<F: Family> Flow<F> {
    pub const EMPTY: Self = Self {
        frontend: F::Addr::ZERO,
        backend: F::Addr::ZERO,
        source: F::Addr::ZERO,
        frontend_port: 0,
        backend_port: 0,
        source_port: 0,
        client_port: 0,
        backend_id: 0,
        generation: 0,
        service: 0,
        ifindex: 0,
        last_seen_s: 0,
        healed_s: 0,
        #[cfg(feature = "abi-next")]
        opened_s: u32::MAX,
        check: 0,
        kind: FlowKind::None,
        state: FlowState::None,
        flags: 0,
        #[cfg(not(feature = "abi-next"))]
        zero: 0,
    };
}

map_types!(FlowKey<V4> = 16, FlowKey<V6> = 40, SnatEntry<V4> = 16, SnatEntry<V6> = 28);
#[cfg(not(feature = "abi-next"))]
map_types!(Flow<V4> = 52, Flow<V6> = 88);
#[cfg(feature = "abi-next")]
map_types!(Flow<V4> = 56, Flow<V6> = 92);
