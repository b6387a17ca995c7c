//! BPF maps as small as a test wants them: not pinned, they vanish with it. Needs root. Of `tests/kernel_maps.rs` and of the
//! random tests of the agent, which name the agent's library differently.

use aya::maps::MapData;
use aya_obj::{
    EbpfSectionKind, Map,
    generated::bpf_map_type::{self, BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LPM_TRIE},
    maps::{LegacyMap, PinningType, bpf_map_def},
};
use proxy_common::{
    abi::{
        AddressInfo, Backend, EndpointSet, Iface, PortName, RingSlot, Service as ServiceValue, ServiceKey, Switches,
        names,
    },
    net::{V4, V6},
};

use super::Capacity;

const BPF_F_NO_PREALLOC: u32 = 1;
const BPF_F_MMAPABLE: u32 = 1 << 10;

fn create(name: &str, kind: bpf_map_type, key: usize, value: usize, entries: usize, flags: u32) -> MapData {
    let def = bpf_map_def {
        map_type: kind as u32,
        key_size: key as u32,
        value_size: value as u32,
        max_entries: entries as u32,
        map_flags: flags,
        id: 0,
        pinning: PinningType::None,
    };
    let map = LegacyMap {
        def,
        inner_def: None,
        section_index: 0,
        section_kind: EbpfSectionKind::Maps,
        symbol_index: None,
        data: Vec::new(),
    };
    MapData::create(Map::Legacy(map), name, None).unwrap()
}

/// One of the maps that the agent writes.
pub(super) fn create_by_name(name: &str, capacity: &Capacity) -> Option<MapData> {
    let hash = |key, value, entries| create(name, BPF_MAP_TYPE_HASH, key, value, entries, 0);
    let array = |value, entries, flags| create(name, BPF_MAP_TYPE_ARRAY, 4, value, entries, flags);
    let trie =
        |address: usize| create(name, BPF_MAP_TYPE_LPM_TRIE, 8 + address, 4, capacity.src_ranges, BPF_F_NO_PREALLOC);
    let service = size_of::<ServiceValue>();
    Some(match name {
        names::ADDRS_V4 => hash(4, size_of::<AddressInfo>(), capacity.addrs),
        names::ADDRS_V6 => hash(16, size_of::<AddressInfo>(), capacity.addrs),
        names::SERVICES_V4 => hash(size_of::<ServiceKey<V4>>(), service, capacity.services),
        names::SERVICES_V6 => hash(size_of::<ServiceKey<V6>>(), service, capacity.services),
        names::BACKENDS_V4 => array(size_of::<Backend<V4>>(), capacity.backends, 0),
        names::BACKENDS_V6 => array(size_of::<Backend<V6>>(), capacity.backends, 0),
        names::SRC_RANGES_V4 => trie(4),
        names::SRC_RANGES_V6 => trie(16),
        names::SETS => array(size_of::<EndpointSet>(), capacity.sets, BPF_F_MMAPABLE),
        names::RINGS => array(size_of::<RingSlot>(), capacity.rings, 0),
        names::PORT_NAMES => hash(4, size_of::<PortName>(), capacity.port_names),
        names::IFACES => hash(4, size_of::<Iface>(), capacity.ifaces),
        names::SWITCHES => array(size_of::<Switches>(), 1, 0),
        _ => return None,
    })
}
