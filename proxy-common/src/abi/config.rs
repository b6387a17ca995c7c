//! CONFIG (`.rodata`, fixed at load) and SWITCHES (one element, changed while running).

use super::map_types;
use crate::net::{Address, Family, Ipv4, Ipv6, V4, V6};

pub const CONFIG_IPV4: u32 = 1;
pub const CONFIG_IPV6: u32 = 2;
/// Connect hooks act on sockets outside the node's own network namespace.
pub const CONFIG_CONNECT_PODS: u32 = 4;
/// Connect hooks act on sockets in the node's own network namespace.
pub const CONFIG_CONNECT_HOST: u32 = 8;
/// Decide and record, but change no packet. The tables are written as ever, so this is not for a node in service; no command
/// sets it.
pub const CONFIG_DRY_RUN: u32 = 16;
/// kube-proxy's masqueradeAll: SNAT also for pods of this node.
pub const CONFIG_MASQUERADE_ALL: u32 = 32;

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// If not 0, the clock stands still at this many nanoseconds since boot (tests). The kernel programs take the moment from CLOCK,
    /// so that it can change while they are loaded.
    pub fixed_now_ns: u64,
    /// Cookie of the node's own network namespace (SO_NETNS_COOKIE).
    pub host_netns_cookie: u64,
    /// Bits `CONFIG_*`.
    pub flags: u32,
    /// Seed of the selection hash.
    pub seed: u32,
    /// The source ports that are Weir's alone, first and last.
    pub snat_first: u16,
    pub snat_last: u16,
    /// A UDP flow idle for longer selects again.
    pub udp_timeout_s: u32,
}

impl Config {
    pub const DEFAULT: Self = Self {
        fixed_now_ns: 0,
        host_netns_cookie: 0,
        flags: CONFIG_IPV4 | CONFIG_IPV6 | CONFIG_CONNECT_PODS | CONFIG_CONNECT_HOST,
        seed: 0,
        snat_first: 61000,
        snat_last: 65535,
        // net.netfilter.nf_conntrack_udp_timeout_stream's default.
        udp_timeout_s: 120,
    };
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

pub const MAX_SERVICE_CIDRS: usize = 8;

/// `mask` of zero: unused.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cidr<F: Family> {
    pub net: F::Addr,
    pub mask: F::Addr,
}

impl<F: Family> Cidr<F> {
    pub const NONE: Self = Self { net: F::Addr::ZERO, mask: F::Addr::ZERO };
}

/// Whether the agent ends connected UDP sockets whose endpoint left. For people; no program reads it.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SocketEnding {
    /// No agent has said it yet.
    Unknown = 0,
    On = 1,
    /// Those of the node's own network namespace only: no other could be found or entered.
    OwnNamespaceOnly = 2,
    /// By `--destroy-sockets=off`.
    Off = 3,
    /// The agent lacks a capability.
    NotPermitted = 4,
    /// The kernel lacks CONFIG_INET_DIAG_DESTROY or CONFIG_INET_UDP_DIAG.
    NotSupported = 5,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Switches {
    pub service_cidrs_v4: [Cidr<V4>; MAX_SERVICE_CIDRS],
    pub service_cidrs_v6: [Cidr<V6>; MAX_SERVICE_CIDRS],
    /// How many of each are used.
    pub service_cidrs_v4_len: u32,
    pub service_cidrs_v6_len: u32,
    /// The tables move to another layout until this second since boot: what no table knows is dropped, for the other layout's
    /// may. A moment and no mark, so that an agent that dies meanwhile stops nobody for long. 0 or past: no move.
    pub migrating_until_s: u32,
    pub socket_ending: SocketEnding,
}

impl Switches {
    pub const DEFAULT: Self = Self {
        service_cidrs_v4: [Cidr::NONE; MAX_SERVICE_CIDRS],
        service_cidrs_v6: [Cidr::NONE; MAX_SERVICE_CIDRS],
        service_cidrs_v4_len: 0,
        service_cidrs_v6_len: 0,
        migrating_until_s: 0,
        socket_ending: SocketEnding::Unknown,
    };
}

/// The service CIDRs of one family.
pub trait ServiceCidrs: Family {
    fn service_cidrs(switches: &Switches) -> (&[Cidr<Self>; MAX_SERVICE_CIDRS], u32);
}
impl ServiceCidrs for V4 {
    #[inline(always)]
    fn service_cidrs(switches: &Switches) -> (&[Cidr<Self>; MAX_SERVICE_CIDRS], u32) {
        (&switches.service_cidrs_v4, switches.service_cidrs_v4_len)
    }
}
impl ServiceCidrs for V6 {
    #[inline(always)]
    fn service_cidrs(switches: &Switches) -> (&[Cidr<Self>; MAX_SERVICE_CIDRS], u32) {
        (&switches.service_cidrs_v6, switches.service_cidrs_v6_len)
    }
}

impl Switches {
    /// True if `addr` lies in a known Service CIDR.
    #[inline(always)]
    #[must_use]
    pub fn in_service_cidr<F: ServiceCidrs>(&self, addr: &F::Addr) -> bool {
        let (cidrs, len) = F::service_cidrs(self);
        let mut i = 0;
        while i < MAX_SERVICE_CIDRS {
            if i as u32 >= len {
                return false;
            }
            if addr.matches(&cidrs[i].net, &cidrs[i].mask) {
                return true;
            }
            i += 1;
        }
        false
    }
}

const _: () = assert!(size_of::<Ipv4>() == 4 && size_of::<Ipv6>() == 16);
map_types!(Config = 32, Switches = 336);
