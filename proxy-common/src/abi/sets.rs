//! SETS: set index -> which part of RINGS. RINGS: index -> backend id.
//!
//! A set is one aligned 64-bit word, read once per packet and written by one 64-bit store through a memory mapping. The new
//! range is complete before the word points at it, so no packet sees half of a change.

use super::map_types;

#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EndpointSet {
    /// First index in RINGS; of an empty set, an [`EmptySet`].
    pub start: u32,
    /// Number of slots.
    pub len: u32,
}

/// What happens to a new flow that finds no endpoint.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EmptySet {
    /// No usable endpoint anywhere.
    Refuse = 0,
    /// A Local policy; there are endpoints on other nodes.
    Drop = 1,
}

impl EndpointSet {
    #[must_use]
    pub const fn empty(verdict: EmptySet) -> Self {
        Self { start: verdict as u32, len: 0 }
    }
    #[must_use]
    pub const fn to_word(self) -> u64 {
        // As memory on a little-endian machine: start first.
        (self.len as u64) << 32 | self.start as u64
    }
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self { start: word as u32, len: (word >> 32) as u32 }
    }
    #[inline(always)]
    #[must_use]
    pub const fn when_empty(self) -> EmptySet {
        if self.start == EmptySet::Drop as u32 { EmptySet::Drop } else { EmptySet::Refuse }
    }
}

#[cfg(not(target_endian = "little"))]
compile_error!("EndpointSet::to_word assumes a little-endian machine");

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingSlot {
    pub backend: u32,
    /// The set that this range was written for: a reader that was overtaken by a reuse of the range notices.
    pub set: u32,
}

map_types!(EndpointSet = 8, RingSlot = 8);
