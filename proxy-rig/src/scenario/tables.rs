//! The maps of one simulated node as plain collections: what the agent programs ([`Actual`]) and what packets write
//! ([`Flows`]). [`ModelTables`] joins both for the decision code. Called by model.rs; kernel.rs compares against it.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use proxy_agent::dataplane::{Actual, MapFamily};
use proxy_common::{
    abi::{
        AffinityKey, AffinityValue, Backend, Config, EndpointSet, Flow, FlowKey, FragEntry, FragKey, Iface, RingSlot,
        Service, ServiceKey, SnatEntry, SockKey, SockLoad, SockPeer, names,
    },
    lb::{Insert, TableFull, Tables, TranslatedFamily},
    net::{Family, Tuple, V4, V6},
};

/// The maps that packets write, of both families. They outlive every change of the objects.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Flows {
    pub(super) v4: FlowsOf<V4>,
    pub(super) v6: FlowsOf<V6>,
    pub(super) affinity: Table<AffinityKey, AffinityValue>,
    /// By set; only those that were ever used.
    pub(super) cursors: Table<u32, u64>,
}

#[derive(Debug, PartialEq)]
pub(super) struct FlowsOf<F: Family> {
    pub(super) conntrack: Table<FlowKey<F>, Flow<F>>,
    pub(super) snat: Table<FlowKey<F>, SnatEntry<F>>,
    pub(super) new_flows: Table<FlowKey<F>, Flow<F>>,
    pub(super) new_snat: Table<FlowKey<F>, SnatEntry<F>>,
    pub(super) frags: Table<FragKey<F>, FragEntry<F>>,
    pub(super) socks: Table<SockKey<F>, SockPeer<F>>,
    /// By backend id; never 0.
    pub(super) loads: Table<u32, u32>,
}

impl<F: Family> Default for FlowsOf<F> {
    fn default() -> Self {
        Self {
            conntrack: RefCell::default(),
            snat: RefCell::default(),
            new_flows: RefCell::default(),
            new_snat: RefCell::default(),
            frags: RefCell::default(),
            socks: RefCell::default(),
            loads: RefCell::default(),
        }
    }
}

/// A family as the rig handles it: finds its half of the tables.
pub(super) trait RigFamily: TranslatedFamily + MapFamily {
    const LOADS: &str;
    fn flows(all: &Flows) -> &FlowsOf<Self>;
}

impl RigFamily for V4 {
    const LOADS: &str = names::LOADS_V4;
    fn flows(all: &Flows) -> &FlowsOf<Self> {
        &all.v4
    }
}

impl RigFamily for V6 {
    const LOADS: &str = names::LOADS_V6;
    fn flows(all: &Flows) -> &FlowsOf<Self> {
        &all.v6
    }
}

/// What the kernel answers beside the maps: routes, and connected sockets.
#[derive(Clone, Debug, Default)]
pub(super) struct Surroundings {
    /// Longest prefix first.
    pub(super) routes: Vec<(IpNet, u32)>,
    /// Remote and local end of connected UDP sockets.
    pub(super) udp_sockets: Vec<(SocketAddr, SocketAddr)>,
}

pub(super) struct ModelTables<'a> {
    pub(super) config: Config,
    pub(super) programmed: &'a Actual,
    pub(super) flows: &'a Flows,
    pub(super) surroundings: &'a Surroundings,
    /// Of the packet that is decided, without its link header.
    pub(super) packet_len: u32,
}

impl<F: RigFamily> Tables<F> for ModelTables<'_> {
    fn config(&self) -> &Config {
        &self.config
    }
    fn now_s(&self) -> u32 {
        (self.config.fixed_now_ns / 1_000_000_000) as u32
    }
    fn random(&self) -> u32 {
        // Any number will do: no scenario looks at a connect-time choice among several.
        self.config.seed
    }

    fn address(&self, addr: &F::Addr) -> u32 {
        F::tables(self.programmed).addrs.get(addr).map_or(0, |info| info.flags)
    }
    fn in_service_cidr(&self, addr: &F::Addr) -> bool {
        self.programmed.switches.in_service_cidr::<F>(addr)
    }
    fn service(&self, key: &ServiceKey<F>) -> Option<Service> {
        F::tables(self.programmed).services.get(key).copied()
    }
    fn set(&self, index: u32) -> EndpointSet {
        self.programmed.set(index)
    }
    fn ring(&self, index: u32) -> Option<RingSlot> {
        Some(self.programmed.rings.get(index as usize).copied().unwrap_or(RingSlot { backend: 0, set: 0 }))
    }
    fn backend(&self, id: u32) -> Option<Backend<F>> {
        Some(F::tables(self.programmed).backend(id))
    }
    fn source_allowed(&self, service: u32, client: &F::Addr) -> bool {
        let client = F::to_ip(*client);
        F::tables(self.programmed).source_ranges.iter().any(|range| {
            range.key.service == service
                && IpNet::new(F::to_ip(range.key.client), range.prefix_len).is_ok_and(|net| net.contains(&client))
        })
    }
    fn iface(&self, ifindex: u32) -> Option<Iface> {
        self.programmed.ifaces.get(&ifindex).copied()
    }

    fn flow<R>(&self, key: &FlowKey<F>, read: impl FnOnce(&mut Flow<F>) -> R) -> Option<R> {
        let flows = F::flows(self.flows);
        find(&flows.conntrack, &flows.new_flows, key, read)
    }
    fn put_flow(&self, key: &FlowKey<F>, flow: &Flow<F>, insert: Insert) -> Result<(), TableFull> {
        let flows = F::flows(self.flows);
        put_new(&flows.conntrack, &flows.new_flows, key, flow, insert)
    }
    fn settle_flow(&self, key: &FlowKey<F>, flow: &Flow<F>) {
        let flows = F::flows(self.flows);
        settle(&flows.conntrack, &flows.new_flows, key, flow);
    }
    fn snat<R>(&self, key: &FlowKey<F>, read: impl FnOnce(&mut SnatEntry<F>) -> R) -> Option<R> {
        let flows = F::flows(self.flows);
        find(&flows.snat, &flows.new_snat, key, read)
    }
    fn put_snat(&self, key: &FlowKey<F>, entry: &SnatEntry<F>) -> Result<(), TableFull> {
        let flows = F::flows(self.flows);
        put_new(&flows.snat, &flows.new_snat, key, entry, Insert::New)
    }
    fn swap_owner(&self, element: &mut SnatEntry<F>, was: u64, _is: u64) -> bool {
        element.word() == was
    }
    fn settle_snat(&self, key: &FlowKey<F>, entry: &SnatEntry<F>) {
        let flows = F::flows(self.flows);
        settle(&flows.snat, &flows.new_snat, key, entry);
    }
    fn frag<R>(&self, key: &FragKey<F>, read: impl FnOnce(&FragEntry<F>) -> R) -> Option<R> {
        F::flows(self.flows).frags.borrow().get(key).map(read)
    }
    fn put_frag(&self, key: &FragKey<F>, entry: &FragEntry<F>) -> Result<(), TableFull> {
        put(&mut F::flows(self.flows).frags.borrow_mut(), key, entry, Insert::Any)
    }
    fn affinity<R>(&self, key: &AffinityKey, read: impl FnOnce(&mut AffinityValue) -> R) -> Option<R> {
        self.flows.affinity.borrow_mut().get_mut(key).map(read)
    }
    fn put_affinity(&self, key: &AffinityKey, value: &AffinityValue) -> Result<(), TableFull> {
        put(&mut self.flows.affinity.borrow_mut(), key, value, Insert::Any)
    }
    fn sock(&self, key: &SockKey<F>) -> Option<SockPeer<F>> {
        F::flows(self.flows).socks.borrow().get(key).copied()
    }
    fn put_sock(&self, key: &SockKey<F>, peer: &SockPeer<F>) -> Result<(), TableFull> {
        put(&mut F::flows(self.flows).socks.borrow_mut(), key, peer, Insert::Any)
    }

    fn next_turn(&self, set: u32) -> u64 {
        let mut cursors = self.flows.cursors.borrow_mut();
        let turn = cursors.entry(set).or_default();
        *turn += 1;
        *turn - 1
    }
    fn load(&self, backend: u32) -> u32 {
        let load = F::flows(self.flows).loads.borrow().get(&backend).copied().unwrap_or(0);
        load.cast_signed().max(0).cast_unsigned()
    }
    fn add_load(&self, backend: u32, change: i32) {
        let mut loads = F::flows(self.flows).loads.borrow_mut();
        let load = loads.get(&backend).copied().unwrap_or(0).wrapping_add_signed(change);
        if load == 0 {
            loads.remove(&backend);
        } else {
            loads.insert(backend, load);
        }
    }
    // No scenario connects a socket.
    fn sock_load(&self, _cookie: u64) -> Option<SockLoad> {
        None
    }
    fn put_sock_load(&self, _cookie: u64, _load: &SockLoad) {}

    fn packet_len(&self) -> u32 {
        self.packet_len
    }
    fn route(&self, _src: &F::Addr, dst: &F::Addr) -> Option<u32> {
        let dst: IpAddr = F::to_ip(*dst);
        self.surroundings.routes.iter().find(|(net, _)| net.contains(&dst)).map(|(_, ifindex)| *ifindex)
    }
    fn has_connected_udp(&self, tuple: &Tuple<F>) -> bool {
        let remote = SocketAddr::new(F::to_ip(tuple.src), tuple.src_port);
        let local = SocketAddr::new(F::to_ip(tuple.dst), tuple.dst_port);
        self.surroundings.udp_sockets.contains(&(remote, local))
    }
}

type Table<K, V> = RefCell<BTreeMap<K, V>>;

fn find<K: Ord, V, R>(settled: &Table<K, V>, new: &Table<K, V>, key: &K, read: impl FnOnce(&mut V) -> R) -> Option<R> {
    match settled.borrow_mut().get_mut(key) {
        Some(value) => Some(read(value)),
        None => new.borrow_mut().get_mut(key).map(read),
    }
}

fn put_new<K: Ord + Copy, V: Copy>(
    settled: &Table<K, V>,
    new: &Table<K, V>,
    key: &K,
    value: &V,
    insert: Insert,
) -> Result<(), TableFull> {
    let table = if settled.borrow().contains_key(key) { settled } else { new };
    put(&mut table.borrow_mut(), key, value, insert)
}

fn settle<K: Ord + Copy, V: Copy>(settled: &Table<K, V>, new: &Table<K, V>, key: &K, value: &V) {
    new.borrow_mut().remove(key);
    settled.borrow_mut().insert(*key, *value);
}

fn put<K: Ord + Copy, V: Copy>(map: &mut BTreeMap<K, V>, key: &K, value: &V, insert: Insert) -> Result<(), TableFull> {
    if insert == Insert::New && map.contains_key(key) {
        return Err(TableFull);
    }
    map.insert(*key, *value);
    Ok(())
}
