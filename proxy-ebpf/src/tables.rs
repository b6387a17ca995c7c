//! [`Tables`] over the BPF maps.

use crate::atomic::{add_u32, compare_and_swap_u64, fetch_add_u64};
use crate::config::config;
use crate::maps::{AFFINITY, CLOCK, CURSORS, FamilyMaps, IFACES, RINGS, SETS, SOCK_LOADS, SWITCHES};
use aya_ebpf::bindings::{__sk_buff, BPF_ANY, BPF_NOEXIST};
use aya_ebpf::btf_maps::{LruHashMap, lpm_trie::Key};
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_ktime_get_coarse_ns, bpf_loop};
use core::ffi::c_void;
use proxy_common::abi::{
    AffinityKey, AffinityValue, Backend, Config, EndpointSet, Flow, FlowKey, FragEntry, FragKey, Iface, RingSlot,
    Service, ServiceCidrs, ServiceKey, SnatEntry, SockCookie, SockKey, SockLoad, SockPeer, SourceRangeKey,
};
use proxy_common::lb::{Insert, Step, TableFull, Tables};
use proxy_common::net::{ETH_LEN, Tuple};

use crate::socket::KernelFamily;

/// The maps, seen from one run of a program.
pub(crate) struct KernelTables {
    /// The packet; null in the socket hooks, which ask for no route and no other socket.
    pub skb: *mut __sk_buff,
}

const NANOS_PER_S: u64 = 1_000_000_000;

#[inline(always)]
fn flags(insert: Insert) -> u64 {
    match insert {
        Insert::Any => u64::from(BPF_ANY),
        Insert::New => u64::from(BPF_NOEXIST),
    }
}

/// Inserts into an LRU map and looks the element up once. Without that the element counts as never used, and where all others were
/// used, as in a full table of busy flows, the insertion of a flow's second half evicts its first.
#[inline(always)]
fn insert_young<K, V, const SIZE: usize>(
    map: &LruHashMap<K, V, SIZE>,
    key: &K,
    value: &V,
    insert: Insert,
) -> Result<(), TableFull> {
    map.insert(key, value, flags(insert)).map_err(|_| TableFull)?;
    let _ = core::hint::black_box(map.get_ptr(key));
    Ok(())
}

/// The element of a key, settled or new.
#[inline(always)]
fn find<K, V, R, const SIZE: usize, const NEW_SIZE: usize>(
    settled: &LruHashMap<K, V, SIZE>,
    new: &LruHashMap<K, V, NEW_SIZE>,
    key: &K,
    read: impl FnOnce(&mut V) -> R,
) -> Option<R> {
    let element = settled.get_ptr_mut(key).or_else(|| new.get_ptr_mut(key))?;
    // SAFETY: the element stays mapped while the program runs. Another CPU may write it or reuse it: each field is a plain
    // word, and readers compare `check`.
    Some(read(unsafe { &mut *element }))
}

/// Writes to the key's own element, or makes one among the new ones.
#[inline(always)]
fn put<K, V: Copy, const SIZE: usize, const NEW_SIZE: usize>(
    settled: &LruHashMap<K, V, SIZE>,
    new: &LruHashMap<K, V, NEW_SIZE>,
    key: &K,
    value: &V,
    insert: Insert,
) -> Result<(), TableFull> {
    if insert == Insert::Any && find(settled, new, key, |there| *there = *value).is_some() {
        return Ok(());
    }
    if insert == Insert::New && settled.get_ptr_mut(key).is_some() {
        return Err(TableFull);
    }
    insert_young(new, key, value, insert)
}

/// Takes a new element over into the settled ones.
#[inline(always)]
fn settle<K, V: Copy, const SIZE: usize, const NEW_SIZE: usize>(
    settled: &LruHashMap<K, V, SIZE>,
    new: &LruHashMap<K, V, NEW_SIZE>,
    key: &K,
    value: &V,
) {
    if let Some(there) = settled.get_ptr_mut(key) {
        // SAFETY: as in `find`.
        unsafe { *there = *value };
    } else if insert_young(settled, key, value, Insert::Any).is_ok() {
        let _ = new.remove(key);
    }
}

impl<F: KernelFamily + FamilyMaps + ServiceCidrs> Tables<F> for KernelTables {
    #[inline(always)]
    fn config(&self) -> &Config {
        config()
    }

    #[inline(always)]
    fn now_s(&self) -> u32 {
        let now_ns = if config().fixed_now_ns != 0 {
            CLOCK.get(0).copied().unwrap_or(0)
        } else {
            // SAFETY: the helper takes no arguments.
            unsafe { bpf_ktime_get_coarse_ns() }
        };
        (now_ns / NANOS_PER_S) as u32
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper takes no arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn address(&self, addr: &F::Addr) -> u32 {
        // SAFETY: one word is read at once; an element that is reused meanwhile is one moment of either.
        match unsafe { F::addrs().get(addr) } {
            Some(info) => info.flags,
            None => 0,
        }
    }

    #[inline(always)]
    fn in_service_cidr(&self, addr: &F::Addr) -> bool {
        match SWITCHES.get(0) {
            Some(switches) => switches.in_service_cidr::<F>(addr),
            None => false,
        }
    }

    #[inline(always)]
    fn is_migrating(&self, now_s: u32) -> bool {
        match SWITCHES.get(0) {
            Some(switches) => now_s < switches.migrating_until_s,
            None => false,
        }
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey<F>) -> Option<Service> {
        // SAFETY: copied at once. The agent never gives a service-port's element another meaning before its key is gone.
        unsafe { F::services().get(key) }.copied()
    }

    #[inline(always)]
    fn set(&self, index: u32) -> EndpointSet {
        match SETS.get(index) {
            // SAFETY: an aligned 64-bit word in an array element; volatile, so that it is read once and whole.
            Some(set) => EndpointSet::from_word(unsafe { core::ptr::from_ref(set).cast::<u64>().read_volatile() }),
            None => EndpointSet { start: 0, len: 0 },
        }
    }

    #[inline(always)]
    fn ring(&self, index: u32) -> Option<RingSlot> {
        RINGS.get(index).copied()
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<Backend<F>> {
        F::backends().get(id).copied()
    }

    #[inline(always)]
    fn copy_backend(&self, id: u32, to: &mut Backend<F>) -> bool {
        // Not by way of the stack.
        match F::backends().get(id) {
            Some(backend) => {
                *to = *backend;
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    fn source_allowed(&self, service: u32, client: &F::Addr) -> bool {
        let bits = 8 * size_of::<SourceRangeKey<F>>() as u32;
        let key = Key::new(bits, SourceRangeKey { service, client: *client });
        F::src_ranges().get(&key).is_some()
    }

    #[inline(always)]
    fn iface(&self, ifindex: u32) -> Option<Iface> {
        // SAFETY: copied at once; the agent rewrites an element only when the link itself changed.
        unsafe { IFACES.get(ifindex) }.copied()
    }

    #[inline(always)]
    fn flow<R>(&self, key: &FlowKey<F>, read: impl FnOnce(&mut Flow<F>) -> R) -> Option<R> {
        find(F::conntrack(), F::new_flows(), key, read)
    }

    #[inline(always)]
    fn put_flow(&self, key: &FlowKey<F>, flow: &Flow<F>, insert: Insert) -> Result<(), TableFull> {
        put(F::conntrack(), F::new_flows(), key, flow, insert)
    }

    #[inline(always)]
    fn settle_flow(&self, key: &FlowKey<F>, flow: &Flow<F>) {
        settle(F::conntrack(), F::new_flows(), key, flow);
    }

    #[inline(always)]
    fn snat<R>(&self, key: &FlowKey<F>, read: impl FnOnce(&mut SnatEntry<F>) -> R) -> Option<R> {
        find(F::snat(), F::new_snat(), key, read)
    }

    #[inline(always)]
    fn put_snat(&self, key: &FlowKey<F>, entry: &SnatEntry<F>) -> Result<(), TableFull> {
        put(F::snat(), F::new_snat(), key, entry, Insert::New)
    }

    #[inline(always)]
    fn swap_owner(&self, element: &mut SnatEntry<F>, was: u64, is: u64) -> bool {
        // SAFETY: the word is the first of an element, which the map aligns to eight bytes.
        unsafe { compare_and_swap_u64((&raw mut *element).cast(), was, is) }
    }

    #[inline(always)]
    fn settle_snat(&self, key: &FlowKey<F>, entry: &SnatEntry<F>) {
        settle(F::snat(), F::new_snat(), key, entry);
    }

    #[inline(always)]
    fn frag<R>(&self, key: &FragKey<F>, read: impl FnOnce(&FragEntry<F>) -> R) -> Option<R> {
        // SAFETY: as in `find`; the reader compares `check`.
        Some(read(unsafe { F::frags().get(key) }?))
    }

    #[inline(always)]
    fn put_frag(&self, key: &FragKey<F>, entry: &FragEntry<F>) -> Result<(), TableFull> {
        F::frags().insert(key, entry, flags(Insert::Any)).map_err(|_| TableFull)
    }

    #[inline(always)]
    fn affinity<R>(&self, key: &AffinityKey, read: impl FnOnce(&mut AffinityValue) -> R) -> Option<R> {
        let value = AFFINITY.get_ptr_mut(key)?;
        // SAFETY: as in `find`; the reader checks the backend's service instead of a digest.
        Some(read(unsafe { &mut *value }))
    }

    #[inline(always)]
    fn put_affinity(&self, key: &AffinityKey, value: &AffinityValue) -> Result<(), TableFull> {
        AFFINITY.insert(key, value, flags(Insert::Any)).map_err(|_| TableFull)
    }

    #[inline(always)]
    fn sock(&self, key: &SockKey<F>) -> Option<SockPeer<F>> {
        // SAFETY: copied at once; the reader compares `check`.
        unsafe { F::sock_revnat().get(key) }.copied()
    }

    #[inline(always)]
    fn put_sock(&self, key: &SockKey<F>, peer: &SockPeer<F>) -> Result<(), TableFull> {
        F::sock_revnat().insert(key, peer, flags(Insert::Any)).map_err(|_| TableFull)
    }

    #[inline(always)]
    fn next_turn(&self, set: u32) -> u64 {
        match CURSORS.get_ptr_mut(set) {
            // SAFETY: elements of an array are aligned to eight bytes.
            Some(turn) => unsafe { fetch_add_u64(turn, 1) },
            None => 0,
        }
    }

    #[inline(always)]
    fn load(&self, backend: u32) -> u32 {
        // Below zero for a moment, if the agent's correction knew of an end before it was counted here.
        F::loads().get(backend).map_or(0, |load| if (*load as i32) < 0 { 0 } else { *load })
    }

    #[inline(always)]
    fn add_load(&self, backend: u32, change: i32) {
        if let Some(load) = F::loads().get_ptr_mut(backend) {
            // SAFETY: elements of an array are aligned to eight bytes.
            unsafe { add_u32(load, change as u32) };
        }
    }

    #[inline(always)]
    fn sock_load(&self, cookie: u64) -> Option<SockLoad> {
        // SAFETY: copied at once; the reader compares `check`.
        unsafe { SOCK_LOADS.get(SockCookie::new(cookie)) }.copied()
    }

    #[inline(always)]
    fn put_sock_load(&self, cookie: u64, load: &SockLoad) {
        // A full table costs the load of this socket's end, which the agent corrects.
        let _ = SOCK_LOADS.insert(SockCookie::new(cookie), load, flags(Insert::Any));
    }

    #[inline(always)]
    fn socket_cookie(&self) -> u64 {
        // SAFETY: context. A packet keeps its socket on its way from a pod through a veth pair (Linux 4.19).
        unsafe { bpf_get_socket_cookie(self.skb.cast()) }
    }

    #[inline(always)]
    fn repeat<S: Step<Self>>(&self, times: u32, state: &mut S) {
        let mut context = Repeat { tables: self, state };
        // SAFETY: the callback gets `context` back, and only while this call lasts.
        unsafe { bpf_loop(times, repeat_once::<S> as *mut c_void, (&raw mut context).cast(), 0) };
    }

    #[inline(always)]
    fn packet_len(&self) -> u32 {
        // SAFETY: context.
        let (len, gso_size) = unsafe { ((*self.skb).len, (*self.skb).gso_size) };
        if gso_size == 0 { len.wrapping_sub(ETH_LEN as u32) } else { 0 }
    }

    #[inline(always)]
    fn route(&self, src: &F::Addr, dst: &F::Addr) -> Option<u32> {
        F::route(self.skb, src, dst)
    }

    #[inline(always)]
    fn has_connected_udp(&self, tuple: &Tuple<F>) -> bool {
        F::has_connected_udp(self.skb, tuple)
    }
}

struct Repeat<'a, S> {
    tables: &'a KernelTables,
    state: &'a mut S,
}

/// bpf_loop's callback: 1 ends the loop.
extern "C" fn repeat_once<S: Step<KernelTables>>(_index: u64, context: *mut c_void) -> i64 {
    // SAFETY: what `repeat` passed, which waits for the loop to end.
    let context = unsafe { &mut *context.cast::<Repeat<'_, S>>() };
    i64::from(context.state.step(context.tables))
}
