//! `Tables` over plain collections, and a small node: for the property tests beside this directory.

use std::{cell::RefCell, collections::HashMap};

use proxy_common::{
    abi::{
        ADDR_CLUSTER_IP, ADDR_EXTERNAL, ADDR_NODE, ADDR_NODEPORT, AffinityKey, AffinityValue, Algorithm,
        BACKEND_CLUSTER_SET, BACKEND_DIRECT, BACKEND_IS_LOCAL, BACKEND_LOCAL_SET, Backend, BackendState, Config,
        EmptySet, EndpointSet, Flow, FlowKey, FragEntry, FragKey, FrontendKind, Iface, IfaceRole, RingSlot, Service,
        ServiceKey, SnatEntry, SockKey, SockLoad, SockPeer,
    },
    lb::{Env, Insert, TableFull, Tables, TranslatedFamily, Verdict, Work, decide},
    net::{Family, Ipv4, Ipv6, Packet, TCP, Tuple, UDP, V4, V6},
};

pub(crate) const POD: u32 = 11;
pub(crate) const UPLINK: u32 = 12;

/// Addresses of the small node. The last number is what tells them apart.
pub(crate) trait TestFamily: TranslatedFamily {
    fn pod(number: u8) -> Self::Addr;
    fn remote_pod(number: u8) -> Self::Addr;
    fn client(number: u8) -> Self::Addr;
    fn vip(number: u8) -> Self::Addr;
    fn node() -> Self::Addr;
}

fn v4(a: u8, b: u8, c: u8, d: u8) -> Ipv4 {
    Ipv4 { octets: [a, b, c, d] }
}

fn v6(net: u8, last: u8) -> Ipv6 {
    let mut octets = [0; 16];
    (octets[0], octets[1], octets[15]) = (0xfd, net, last);
    Ipv6 { octets }
}

impl TestFamily for V4 {
    fn pod(number: u8) -> Ipv4 {
        v4(10, 244, 1, number)
    }
    fn remote_pod(number: u8) -> Ipv4 {
        v4(10, 244, 2, number)
    }
    fn client(number: u8) -> Ipv4 {
        v4(203, 0, 113, number)
    }
    fn vip(number: u8) -> Ipv4 {
        v4(10, 96, 0, number)
    }
    fn node() -> Ipv4 {
        v4(192, 168, 1, 10)
    }
}

impl TestFamily for V6 {
    fn pod(number: u8) -> Ipv6 {
        v6(1, number)
    }
    fn remote_pod(number: u8) -> Ipv6 {
        v6(2, number)
    }
    fn client(number: u8) -> Ipv6 {
        v6(3, number)
    }
    fn vip(number: u8) -> Ipv6 {
        v6(4, number)
    }
    fn node() -> Ipv6 {
        v6(5, 10)
    }
}

type Map<K, V> = RefCell<HashMap<K, V>>;

pub(crate) struct Memory<F: Family> {
    pub(crate) config: Config,
    pub(crate) now_s: u32,
    pub(crate) migrating: bool,
    pub(crate) addrs: HashMap<F::Addr, u32>,
    pub(crate) services: HashMap<ServiceKey<F>, Service>,
    pub(crate) sets: Vec<EndpointSet>,
    pub(crate) rings: Vec<RingSlot>,
    pub(crate) backends: Vec<Backend<F>>,
    pub(crate) ifaces: HashMap<u32, Iface>,
    pub(crate) flows: Map<FlowKey<F>, Flow<F>>,
    pub(crate) new_flows: Map<FlowKey<F>, Flow<F>>,
    pub(crate) snats: Map<FlowKey<F>, SnatEntry<F>>,
    pub(crate) new_snats: Map<FlowKey<F>, SnatEntry<F>>,
    pub(crate) frags: Map<FragKey<F>, FragEntry<F>>,
    pub(crate) affinities: Map<AffinityKey, AffinityValue>,
    pub(crate) socks: Map<SockKey<F>, SockPeer<F>>,
    pub(crate) turns: Map<u32, u64>,
    pub(crate) loads: Map<u32, i32>,
    pub(crate) sock_loads: Map<u64, SockLoad>,
    pub(crate) random: RefCell<u64>,
    /// Of the socket that sent the packet.
    pub(crate) cookie: u64,
    /// Entries per table.
    pub(crate) capacity: usize,
    /// Another CPU takes each source port first that this one wants to take over.
    pub(crate) overtaken: bool,
}

impl<F: TestFamily> Memory<F> {
    /// Three VIPs and a NodePort (32000), TCP and UDP, each over the same four endpoints: local pods 10 and 11, remote pods
    /// 20 and 21.
    pub(crate) fn node() -> Self {
        let iface = |role| Iface { role, flags: 0, zero: [0; 2], mtu: 1500, addr_v4: V4::node(), addr_v6: V6::node() };
        let mut memory = Self {
            config: Config { seed: 7, ..Config::DEFAULT },
            now_s: 1000,
            migrating: false,
            addrs: HashMap::from([(F::node(), ADDR_NODE | ADDR_NODEPORT)]),
            services: HashMap::new(),
            sets: vec![EndpointSet::empty(EmptySet::Refuse)],
            rings: Vec::new(),
            // Id 0 is no endpoint.
            backends: vec![backend(F::node(), 0, 0)],
            ifaces: HashMap::from([(POD, iface(IfaceRole::Pod)), (UPLINK, iface(IfaceRole::Uplink))]),
            flows: Map::default(),
            new_flows: Map::default(),
            snats: Map::default(),
            new_snats: Map::default(),
            frags: Map::default(),
            affinities: Map::default(),
            socks: Map::default(),
            turns: Map::default(),
            loads: Map::default(),
            sock_loads: Map::default(),
            random: RefCell::default(),
            cookie: 0,
            capacity: usize::MAX,
            overtaken: false,
        };
        let local = BACKEND_IS_LOCAL | BACKEND_DIRECT | BACKEND_CLUSTER_SET | BACKEND_LOCAL_SET;
        for addr in [F::pod(10), F::pod(11)] {
            memory.backends.push(backend(addr, local, 1));
        }
        for addr in [F::remote_pod(20), F::remote_pod(21)] {
            memory.backends.push(backend(addr, BACKEND_CLUSTER_SET, 1));
        }
        memory.sets.push(EndpointSet { start: 0, len: 4 });
        memory.rings = (1..=4).map(|backend| RingSlot { backend, set: 1 }).collect();
        memory.addrs.extend([(F::vip(1), ADDR_CLUSTER_IP), (F::vip(2), ADDR_CLUSTER_IP), (F::vip(3), ADDR_EXTERNAL)]);
        for protocol in [TCP, UDP] {
            for frontend in
                [(F::vip(1), 80), (F::vip(2), 80), (F::vip(3), 8080), (proxy_common::net::Address::ZERO, 32000)]
            {
                let key = ServiceKey { addr: frontend.0, port: frontend.1, protocol, zero: 0 };
                memory.services.insert(key, SERVICE);
            }
        }
        memory
    }

    pub(crate) fn decide(&self, ingress: bool, env: &Env, packet: &Packet<F>) -> (Verdict, Work<F>) {
        let mut work = Work::new(*packet);
        let verdict = decide(self, env, !ingress, &mut work);
        (verdict, work)
    }
}

const SERVICE: Service = Service {
    id: 1,
    internal_set: 1,
    external_set: 1,
    affinity_s: 0,
    kind: FrontendKind::ClusterIp,
    algorithm: Algorithm::Random,
    flags: 0,
    zero: 0,
};

fn backend<F: Family>(addr: F::Addr, flags: u8, generation: u32) -> Backend<F> {
    Backend { addr, port: 9376, flags, state: BackendState::Serving, generation, service: 1, weight: 1, zero: 0 }
}

impl<F: TestFamily> Tables<F> for Memory<F> {
    fn config(&self) -> &Config {
        &self.config
    }
    fn now_s(&self) -> u32 {
        self.now_s
    }
    fn random(&self) -> u32 {
        // SplitMix64, the same numbers in each run.
        let mut state = self.random.borrow_mut();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 32) as u32
    }
    fn address(&self, addr: &F::Addr) -> u32 {
        self.addrs.get(addr).copied().unwrap_or(0)
    }
    fn in_service_cidr(&self, _addr: &F::Addr) -> bool {
        false
    }
    fn is_migrating(&self, _now_s: u32) -> bool {
        self.migrating
    }
    fn service(&self, key: &ServiceKey<F>) -> Option<Service> {
        self.services.get(key).copied()
    }
    fn set(&self, index: u32) -> EndpointSet {
        self.sets.get(index as usize).copied().unwrap_or(EndpointSet::empty(EmptySet::Refuse))
    }
    fn ring(&self, index: u32) -> Option<RingSlot> {
        self.rings.get(index as usize).copied()
    }
    fn backend(&self, id: u32) -> Option<Backend<F>> {
        self.backends.get(id as usize).copied()
    }
    fn source_allowed(&self, _service: u32, _client: &F::Addr) -> bool {
        true
    }
    fn iface(&self, ifindex: u32) -> Option<Iface> {
        self.ifaces.get(&ifindex).copied()
    }
    fn flow<R>(&self, key: &FlowKey<F>, read: impl FnOnce(&mut Flow<F>) -> R) -> Option<R> {
        find(&self.flows, &self.new_flows, key, read)
    }
    fn put_flow(&self, key: &FlowKey<F>, flow: &Flow<F>, insert: Insert) -> Result<(), TableFull> {
        put_new(&self.flows, &self.new_flows, self.capacity, key, flow, insert)
    }
    fn settle_flow(&self, key: &FlowKey<F>, flow: &Flow<F>) {
        self.new_flows.borrow_mut().remove(key);
        self.flows.borrow_mut().insert(*key, *flow);
    }
    fn snat<R>(&self, key: &FlowKey<F>, read: impl FnOnce(&mut SnatEntry<F>) -> R) -> Option<R> {
        find(&self.snats, &self.new_snats, key, read)
    }
    fn put_snat(&self, key: &FlowKey<F>, entry: &SnatEntry<F>) -> Result<(), TableFull> {
        put_new(&self.snats, &self.new_snats, self.capacity, key, entry, Insert::New)
    }
    fn swap_owner(&self, element: &mut SnatEntry<F>, was: u64, _is: u64) -> bool {
        !self.overtaken && element.word() == was
    }
    fn settle_snat(&self, key: &FlowKey<F>, entry: &SnatEntry<F>) {
        self.new_snats.borrow_mut().remove(key);
        self.snats.borrow_mut().insert(*key, *entry);
    }
    fn frag<R>(&self, key: &FragKey<F>, read: impl FnOnce(&FragEntry<F>) -> R) -> Option<R> {
        self.frags.borrow().get(key).map(read)
    }
    fn put_frag(&self, key: &FragKey<F>, entry: &FragEntry<F>) -> Result<(), TableFull> {
        put(&self.frags, self.capacity, key, entry, Insert::Any)
    }
    fn affinity<R>(&self, key: &AffinityKey, read: impl FnOnce(&mut AffinityValue) -> R) -> Option<R> {
        self.affinities.borrow_mut().get_mut(key).map(read)
    }
    fn put_affinity(&self, key: &AffinityKey, value: &AffinityValue) -> Result<(), TableFull> {
        put(&self.affinities, self.capacity, key, value, Insert::Any)
    }
    fn sock(&self, key: &SockKey<F>) -> Option<SockPeer<F>> {
        self.socks.borrow().get(key).copied()
    }
    fn put_sock(&self, key: &SockKey<F>, peer: &SockPeer<F>) -> Result<(), TableFull> {
        put(&self.socks, self.capacity, key, peer, Insert::Any)
    }
    fn next_turn(&self, set: u32) -> u64 {
        let mut turns = self.turns.borrow_mut();
        let turn = turns.entry(set).or_default();
        *turn += 1;
        *turn - 1
    }
    fn load(&self, backend: u32) -> u32 {
        self.loads.borrow().get(&backend).map_or(0, |load| (*load).max(0).unsigned_abs())
    }
    fn add_load(&self, backend: u32, change: i32) {
        *self.loads.borrow_mut().entry(backend).or_default() += change;
    }
    fn sock_load(&self, cookie: u64) -> Option<SockLoad> {
        self.sock_loads.borrow().get(&cookie).copied()
    }
    fn put_sock_load(&self, cookie: u64, load: &SockLoad) {
        self.sock_loads.borrow_mut().insert(cookie, *load);
    }
    fn socket_cookie(&self) -> u64 {
        self.cookie
    }
    fn packet_len(&self) -> u32 {
        100
    }
    fn route(&self, _src: &F::Addr, dst: &F::Addr) -> Option<u32> {
        Some(link_to::<F>(dst))
    }
    fn has_connected_udp(&self, _tuple: &Tuple<F>) -> bool {
        false
    }
}

/// The interface that leads to an address of the small node's world.
pub(crate) fn link_to<F: TestFamily>(addr: &F::Addr) -> u32 {
    if (1..=30).any(|number| F::pod(number) == *addr) { POD } else { UPLINK }
}

fn find<K: Eq + std::hash::Hash, V, R>(
    settled: &Map<K, V>,
    new: &Map<K, V>,
    key: &K,
    read: impl FnOnce(&mut V) -> R,
) -> Option<R> {
    match settled.borrow_mut().get_mut(key) {
        Some(value) => Some(read(value)),
        None => new.borrow_mut().get_mut(key).map(read),
    }
}

fn put_new<K: Eq + std::hash::Hash + Copy, V: Copy>(
    settled: &Map<K, V>,
    new: &Map<K, V>,
    capacity: usize,
    key: &K,
    value: &V,
    insert: Insert,
) -> Result<(), TableFull> {
    let map = if settled.borrow().contains_key(key) { settled } else { new };
    put(map, capacity, key, value, insert)
}

fn put<K: Eq + std::hash::Hash + Copy, V: Copy>(
    map: &Map<K, V>,
    capacity: usize,
    key: &K,
    value: &V,
    insert: Insert,
) -> Result<(), TableFull> {
    let mut map = map.borrow_mut();
    let known = map.contains_key(key);
    if known && insert == Insert::New || !known && map.len() >= capacity {
        return Err(TableFull);
    }
    map.insert(*key, *value);
    Ok(())
}
