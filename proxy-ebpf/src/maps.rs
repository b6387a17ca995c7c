//! The maps. Keys, values and capacities are those of `proxy_common::abi`; docs/maps.md says how to read them.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use proxy_common::abi::{
    AddressInfo, AffinityKey, AffinityValue, Backend, EndpointSet, Flow, FlowKey, FragEntry, FragKey, Iface, PortName,
    REASON_SLOTS, RingSlot, Service, ServiceKey, SnatEntry, SockCookie, SockKey, SockLoad, SockPeer, SourceRangeKey,
    Switches, VerdictRecord, capacity,
};
use proxy_common::lb::{Verdict, Work};
use proxy_common::net::{Family, Ipv4, Ipv6, V4, V6};

type Addrs<A> = HashMap<A, AddressInfo, { capacity::ADDRS }>;
type Services<F> = HashMap<ServiceKey<F>, Service, { capacity::SERVICES }>;
type Backends<F> = Array<Backend<F>, { capacity::BACKENDS }>;
type Conntrack<F> = LruHashMap<FlowKey<F>, Flow<F>, { capacity::CONNTRACK }>;
type Snat<F> = LruHashMap<FlowKey<F>, SnatEntry<F>, { capacity::SNAT }>;
type NewFlows<F> = LruHashMap<FlowKey<F>, Flow<F>, { capacity::NEW_FLOWS }>;
type NewSnat<F> = LruHashMap<FlowKey<F>, SnatEntry<F>, { capacity::NEW_SNAT }>;
type Frags<F> = LruHashMap<FragKey<F>, FragEntry<F>, { capacity::FRAGS }>;
type SrcRanges<F> = LpmTrie<SourceRangeKey<F>, u32, { capacity::SRC_RANGES }>;
type Loads = Array<u32, { capacity::BACKENDS }>;
type SockRevnat<F> = LruHashMap<SockKey<F>, SockPeer<F>, { capacity::SOCK_REVNAT }>;

#[btf_map]
static ADDRS_V4: Addrs<Ipv4> = Addrs::new();
#[btf_map]
static ADDRS_V6: Addrs<Ipv6> = Addrs::new();
#[btf_map]
static SERVICES_V4: Services<V4> = Services::new();
#[btf_map]
static SERVICES_V6: Services<V6> = Services::new();
#[btf_map]
static BACKENDS_V4: Backends<V4> = Backends::new();
#[btf_map]
static BACKENDS_V6: Backends<V6> = Backends::new();
#[btf_map]
static CONNTRACK_V4: Conntrack<V4> = Conntrack::new();
#[btf_map]
static CONNTRACK_V6: Conntrack<V6> = Conntrack::new();
#[btf_map]
static SNAT_V4: Snat<V4> = Snat::new();
#[btf_map]
static SNAT_V6: Snat<V6> = Snat::new();
#[btf_map]
static NEW_FLOWS_V4: NewFlows<V4> = NewFlows::new();
#[btf_map]
static NEW_FLOWS_V6: NewFlows<V6> = NewFlows::new();
#[btf_map]
static NEW_SNAT_V4: NewSnat<V4> = NewSnat::new();
#[btf_map]
static NEW_SNAT_V6: NewSnat<V6> = NewSnat::new();
#[btf_map]
static FRAGS_V4: Frags<V4> = Frags::new();
#[btf_map]
static FRAGS_V6: Frags<V6> = Frags::new();
#[btf_map]
static SRC_RANGES_V4: SrcRanges<V4> = SrcRanges::new();
#[btf_map]
static SRC_RANGES_V6: SrcRanges<V6> = SrcRanges::new();
#[btf_map]
static SOCK_REVNAT_V4: SockRevnat<V4> = SockRevnat::new();
#[btf_map]
static SOCK_REVNAT_V6: SockRevnat<V6> = SockRevnat::new();
#[btf_map]
static LOADS_V4: Loads = Loads::new();
#[btf_map]
static LOADS_V6: Loads = Loads::new();

// Mapped into the agent, which changes a set by one 64-bit store.
#[btf_map]
pub(crate) static SETS: Array<EndpointSet, { capacity::SETS }, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
pub(crate) static RINGS: Array<RingSlot, { capacity::RINGS }> = Array::new();
#[btf_map]
pub(crate) static AFFINITY: LruHashMap<AffinityKey, AffinityValue, { capacity::AFFINITY }> = LruHashMap::new();
// Round robin: how many slots of each set were given out.
#[btf_map]
pub(crate) static CURSORS: Array<u64, { capacity::SETS }> = Array::new();
#[btf_map]
pub(crate) static SOCK_LOADS: LruHashMap<SockCookie, SockLoad, { capacity::SOCK_REVNAT }> = LruHashMap::new();
#[btf_map]
pub(crate) static IFACES: HashMap<u32, Iface, { capacity::IFACES }> = HashMap::new();
#[btf_map]
pub(crate) static SWITCHES: Array<Switches, 1> = Array::new();
// Read by people only.
#[btf_map]
static PORT_NAMES: HashMap<u32, PortName, { capacity::PORT_NAMES }> = HashMap::new();
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<u64, REASON_SLOTS> = PerCpuArray::new();
#[btf_map]
pub(crate) static VERDICT: PerCpuArray<VerdictRecord, 1> = PerCpuArray::new();
/// When the current second of ICMP errors began, and how many were sent in it.
#[btf_map]
pub(crate) static ICMP_BUDGET: PerCpuArray<[u32; 2], 1> = PerCpuArray::new();

/// Nanoseconds since boot, for programs whose clock stands still (tests: `Config::fixed_now_ns`).
#[btf_map]
pub(crate) static CLOCK: Array<u64, 1> = Array::new();

// What a program works on; each direction of tc has its own, and a program of one direction is never interrupted by another
// run of it on the same CPU.
#[repr(C)]
pub(crate) struct Scratch<F: Family> {
    pub work: Work<F>,
    pub verdict: Verdict,
}
type Scratches<F> = PerCpuArray<Scratch<F>, 2>;
#[btf_map]
static SCRATCH_V4: Scratches<V4> = Scratches::new();
#[btf_map]
static SCRATCH_V6: Scratches<V6> = Scratches::new();

/// The maps of one family.
pub(crate) trait FamilyMaps: Family {
    fn addrs() -> &'static Addrs<Self::Addr>;
    fn services() -> &'static Services<Self>;
    fn backends() -> &'static Backends<Self>;
    fn conntrack() -> &'static Conntrack<Self>;
    fn snat() -> &'static Snat<Self>;
    fn new_flows() -> &'static NewFlows<Self>;
    fn new_snat() -> &'static NewSnat<Self>;
    fn frags() -> &'static Frags<Self>;
    fn src_ranges() -> &'static SrcRanges<Self>;
    fn sock_revnat() -> &'static SockRevnat<Self>;
    fn loads() -> &'static Loads;
    fn scratch() -> &'static Scratches<Self>;
}

macro_rules! family_maps {
    ($family:ty: $addrs:ident $services:ident $backends:ident $conntrack:ident $snat:ident $new_flows:ident
        $new_snat:ident $frags:ident $ranges:ident $sock:ident $loads:ident $scratch:ident) => {
        impl FamilyMaps for $family {
            #[inline(always)]
            fn addrs() -> &'static Addrs<Self::Addr> {
                &$addrs
            }
            #[inline(always)]
            fn services() -> &'static Services<Self> {
                &$services
            }
            #[inline(always)]
            fn backends() -> &'static Backends<Self> {
                &$backends
            }
            #[inline(always)]
            fn conntrack() -> &'static Conntrack<Self> {
                &$conntrack
            }
            #[inline(always)]
            fn snat() -> &'static Snat<Self> {
                &$snat
            }
            #[inline(always)]
            fn new_flows() -> &'static NewFlows<Self> {
                &$new_flows
            }
            #[inline(always)]
            fn new_snat() -> &'static NewSnat<Self> {
                &$new_snat
            }
            #[inline(always)]
            fn frags() -> &'static Frags<Self> {
                &$frags
            }
            #[inline(always)]
            fn src_ranges() -> &'static SrcRanges<Self> {
                &$ranges
            }
            #[inline(always)]
            fn sock_revnat() -> &'static SockRevnat<Self> {
                &$sock
            }
            #[inline(always)]
            fn loads() -> &'static Loads {
                &$loads
            }
            #[inline(always)]
            fn scratch() -> &'static Scratches<Self> {
                &$scratch
            }
        }
    };
}
family_maps!(V4: ADDRS_V4 SERVICES_V4 BACKENDS_V4 CONNTRACK_V4 SNAT_V4 NEW_FLOWS_V4 NEW_SNAT_V4 FRAGS_V4
    SRC_RANGES_V4 SOCK_REVNAT_V4 LOADS_V4 SCRATCH_V4);
family_maps!(V6: ADDRS_V6 SERVICES_V6 BACKENDS_V6 CONNTRACK_V6 SNAT_V6 NEW_FLOWS_V6 NEW_SNAT_V6 FRAGS_V6
    SRC_RANGES_V6 SOCK_REVNAT_V6 LOADS_V6 SCRATCH_V6);
