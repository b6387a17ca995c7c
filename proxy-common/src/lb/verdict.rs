//! The result of a decision: a [`Verdict`], and a [`Rewrite`] if the packet changes.

use super::select::{Chosen, Client};
use super::snat::Search;
use crate::abi::{Action, Flow, FlowKey, FragEntry, FragKey, LOOPBACK, Reason};
use crate::net::{Address, Family, Packet, Tuple};

/// Where a packet is.
#[derive(Clone, Copy, Debug)]
pub struct Env {
    /// The interface that the hook sits on.
    pub ifindex: u32,
    /// At egress: made by a socket of this node (it came in by no interface).
    pub own: bool,
    /// At ingress: the agent asks where a new flow would go. Nothing is remembered.
    pub probe: bool,
}

impl Env {
    #[inline(always)]
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        // If it knew the index itself from then on, the verifier would follow all that comes after twice.
        core::hint::black_box(self.ifindex ^ LOOPBACK) == 0
    }
}

#[must_use]
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    pub action: Action,
    pub reason: Reason,
    /// Target of a redirect.
    pub ifindex: u32,
    /// Backend id, 0 if none was involved.
    pub backend: u32,
}

impl Verdict {
    #[inline(always)]
    pub const fn new(action: Action, reason: Reason, backend: u32) -> Self {
        Self { action, reason, ifindex: 0, backend }
    }
    #[inline(always)]
    pub const fn pass(reason: Reason) -> Self {
        Self::new(Action::Pass, reason, 0)
    }
    #[inline(always)]
    pub const fn drop(reason: Reason) -> Self {
        Self::new(Action::Drop, reason, 0)
    }
    #[inline(always)]
    pub const fn refuse(reason: Reason) -> Self {
        Self::new(Action::Reply, reason, 0)
    }
    #[inline(always)]
    pub const fn redirect(reason: Reason, ifindex: u32, backend: u32) -> Self {
        Self { action: Action::Redirect, reason, ifindex, backend }
    }
}

pub const CHANGED_SRC: u8 = 1;
pub const CHANGED_DST: u8 = 2;
pub const CHANGED_SRC_PORT: u8 = 4;
pub const CHANGED_DST_PORT: u8 = 8;

/// The tuple that the packet leaves with.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rewrite<F: Family> {
    pub tuple: Tuple<F>,
    /// Bits `CHANGED_*`; 0: the packet stays as it is.
    pub changed: u8,
    /// Sent back out of the interface it came in by: the link addresses change places.
    pub bounce: bool,
    /// Of a packet that is too long: what its link takes.
    pub mtu: u32,
}

impl<F: Family> Rewrite<F> {
    pub const NONE: Self = Self {
        tuple: Tuple { src: F::Addr::ZERO, dst: F::Addr::ZERO, src_port: 0, dst_port: 0 },
        changed: 0,
        bounce: false,
        mtu: 0,
    };

    /// Starts from the packet's own tuple.
    #[inline(always)]
    pub fn start(&mut self, packet: &Packet<F>) {
        self.tuple = packet.tuple;
        self.changed = 0;
        self.bounce = false;
    }

    #[inline(always)]
    pub fn set_dst(&mut self, addr: F::Addr, port: u16) {
        if self.tuple.dst != addr {
            self.tuple.dst = addr;
            self.changed |= CHANGED_DST;
        }
        if self.tuple.dst_port != port {
            self.tuple.dst_port = port;
            self.changed |= CHANGED_DST_PORT;
        }
    }

    #[inline(always)]
    pub fn set_src(&mut self, addr: F::Addr, port: u16) {
        if self.tuple.src != addr {
            self.tuple.src = addr;
            self.changed |= CHANGED_SRC;
        }
        self.set_src_port(port);
    }

    #[inline(always)]
    pub fn set_src_port(&mut self, port: u16) {
        if self.tuple.src_port != port {
            self.tuple.src_port = port;
            self.changed |= CHANGED_SRC_PORT;
        }
    }
}

/// What one decision works on. Too large for the kernel's stack together with all else: there it is a per-CPU map element.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Work<F: Family> {
    /// In.
    pub packet: Packet<F>,
    /// Out.
    pub rewrite: Rewrite<F>,
    pub key: FlowKey<F>,
    pub flow: Flow<F>,
    /// Key of the flow's other half.
    pub other: FlowKey<F>,
    pub search: Search<F>,
    /// Of a new flow: who calls, and which endpoint it gets.
    pub client: Client,
    pub chosen: Chosen<F>,
    pub frag_key: FragKey<F>,
    pub frag: FragEntry<F>,
    /// Of an ICMP error: the packet that it quotes, and what becomes of it.
    pub quote: Packet<F>,
    pub quoted: Rewrite<F>,
    /// Its TCP or UDP checksum is quoted too.
    pub quoted_checksum: bool,
    /// The packet of a socket whose endpoint left (here and not in a variable: the verifier would follow both ways to the end).
    pub steered: bool,
}

impl<F: Family> Work<F> {
    #[must_use]
    pub const fn new(packet: Packet<F>) -> Self {
        Self {
            packet,
            rewrite: Rewrite::NONE,
            key: FlowKey::EMPTY,
            flow: Flow::EMPTY,
            other: FlowKey::EMPTY,
            search: Search::EMPTY,
            client: Client::NOBODY,
            chosen: Chosen::NONE,
            frag_key: FragKey::EMPTY,
            frag: FragEntry::EMPTY,
            quote: Packet::EMPTY,
            quoted: Rewrite::NONE,
            quoted_checksum: false,
            steered: false,
        }
    }
}
