//! The maps as the decision code sees them. The kernel implements this over BPF maps, the tests over plain collections.

use crate::abi::{
    AffinityKey, AffinityValue, Backend, Config, EndpointSet, Flow, FlowKey, FragEntry, FragKey, Iface, RingSlot,
    Service, ServiceKey, SnatEntry, SockKey, SockLoad, SockPeer,
};
use crate::net::{Family, Tuple};

/// How an entry is written: `Any` replaces (BPF_ANY), `New` must not (BPF_NOEXIST).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Insert {
    Any,
    New,
}

/// The entry was not written: the table is full or, for [`Insert::New`], the key is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableFull;

/// One round of a bounded search.
pub trait Step<T> {
    /// True ends the search.
    fn step(&mut self, tables: &T) -> bool;
}

/// Entries that packets change are handed to a closure: a reference must not outlive the next write to its map.
pub trait Tables<F: Family> {
    fn config(&self) -> &Config;
    /// Seconds since boot.
    fn now_s(&self) -> u32;
    /// Uniform, for connect time.
    fn random(&self) -> u32;

    /// Bits `ADDR_*`; 0 = unknown.
    fn address(&self, addr: &F::Addr) -> u32;
    fn in_service_cidr(&self, addr: &F::Addr) -> bool;
    /// The tables move to another layout: a flow that is not in them may be in those that are not read.
    fn is_migrating(&self, _now_s: u32) -> bool {
        false
    }
    fn service(&self, key: &ServiceKey<F>) -> Option<Service>;
    fn set(&self, index: u32) -> EndpointSet;
    fn ring(&self, index: u32) -> Option<RingSlot>;
    fn backend(&self, id: u32) -> Option<Backend<F>>;
    /// The same, straight to where it is wanted. False if there is no such id.
    fn copy_backend(&self, id: u32, to: &mut Backend<F>) -> bool {
        self.backend(id).is_some_and(|backend| {
            *to = backend;
            true
        })
    }
    fn source_allowed(&self, service: u32, client: &F::Addr) -> bool;
    fn iface(&self, ifindex: u32) -> Option<Iface>;

    // Flows are in two tables: CONNTRACK holds those whose client has answered, NEW_FLOWS the others. A key is in one of them;
    // an element of CONNTRACK is used again in place. SNAT and NEW_SNAT likewise.
    /// From either table.
    fn flow<R>(&self, key: &FlowKey<F>, read: impl FnOnce(&mut Flow<F>) -> R) -> Option<R>;
    /// Into the key's own element if it has one in either table, else into NEW_FLOWS.
    fn put_flow(&self, key: &FlowKey<F>, flow: &Flow<F>, insert: Insert) -> Result<(), TableFull>;
    /// Into CONNTRACK, for good.
    fn settle_flow(&self, key: &FlowKey<F>, flow: &Flow<F>);
    fn snat<R>(&self, key: &FlowKey<F>, read: impl FnOnce(&mut SnatEntry<F>) -> R) -> Option<R>;
    /// Into NEW_SNAT, if neither table has the key.
    fn put_snat(&self, key: &FlowKey<F>, entry: &SnatEntry<F>) -> Result<(), TableFull>;
    /// Swaps the word of an element's owner ([`SnatEntry::word`]) if it is still what it was. Of several CPUs one succeeds.
    fn swap_owner(&self, element: &mut SnatEntry<F>, was: u64, is: u64) -> bool;
    fn settle_snat(&self, key: &FlowKey<F>, entry: &SnatEntry<F>);
    fn frag<R>(&self, key: &FragKey<F>, read: impl FnOnce(&FragEntry<F>) -> R) -> Option<R>;
    fn put_frag(&self, key: &FragKey<F>, entry: &FragEntry<F>) -> Result<(), TableFull>;
    fn affinity<R>(&self, key: &AffinityKey, read: impl FnOnce(&mut AffinityValue) -> R) -> Option<R>;
    fn put_affinity(&self, key: &AffinityKey, value: &AffinityValue) -> Result<(), TableFull>;
    fn sock(&self, key: &SockKey<F>) -> Option<SockPeer<F>>;
    fn put_sock(&self, key: &SockKey<F>, peer: &SockPeer<F>) -> Result<(), TableFull>;

    /// Whose turn it is in a set's round robin: 0, 1, 2 and so on, each number given once.
    fn next_turn(&self, set: u32) -> u64;
    /// Open connections of a backend of a least-connections Service.
    fn load(&self, backend: u32) -> u32;
    fn add_load(&self, backend: u32, change: i32);
    /// What a TCP socket is counted for.
    fn sock_load(&self, cookie: u64) -> Option<SockLoad>;
    fn put_sock_load(&self, cookie: u64, load: &SockLoad);

    /// Cookie of the socket that sent the packet; 0 if it is not known here.
    fn socket_cookie(&self) -> u64 {
        0
    }

    /// Takes up to `times` steps, until one returns true. The kernel side does it by bpf_loop (Linux 5.17), so that the
    /// verifier looks at the step once.
    fn repeat<S: Step<Self>>(&self, times: u32, state: &mut S)
    where
        Self: Sized,
    {
        for _ in 0..times {
            if state.step(self) {
                break;
            }
        }
    }

    /// Bytes of the packet without its link header; 0 if it is cut later (GSO).
    fn packet_len(&self) -> u32;
    /// The interface that leads from `src` to `dst`, by the node's routes.
    fn route(&self, src: &F::Addr, dst: &F::Addr) -> Option<u32>;
    /// True if a connected UDP socket of this node receives packets with this tuple.
    fn has_connected_udp(&self, tuple: &Tuple<F>) -> bool;
}
