//! `weir maps`: the names of the maps, and one map with all its entries, field by field.

use std::fmt::Debug;

use aya::{
    Pod,
    maps::{LpmTrie, MapData},
};
use proxy_common::{
    abi::{
        AddressInfo, AffinityKey, AffinityValue, Backend, EndpointSet, Flow, FlowKey, FragEntry, FragKey, Iface,
        PortName, Reason, RingSlot, Service, ServiceKey, SnatEntry, SockCookie, SockKey, SockLoad, SockPeer,
        SourceRangeKey, Switches, VerdictRecord, names,
    },
    net::{Ipv4, Ipv6, V4, V6},
};
use serde::Serialize;

use super::{
    output::Row,
    tables::{PortNames, TableError, elements, entries, open, per_cpu},
};
use crate::loader::Pins;

/// Keys and values as the names and values of their fields.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) value: String,
}

impl Row for Entry {
    const COLUMNS: &'static [&'static str] = &["KEY", "VALUE"];

    fn cells(&self) -> Vec<String> {
        vec![self.key.clone(), self.value.clone()]
    }
}

/// All entries of one map. Elements of arrays that were never written are left out.
pub(super) fn dump(pins: &Pins, map: &str) -> Result<Vec<Entry>, TableError> {
    match map {
        names::ADDRS_V4 => hash::<Ipv4, AddressInfo>(pins, map),
        names::ADDRS_V6 => hash::<Ipv6, AddressInfo>(pins, map),
        names::SERVICES_V4 => hash::<ServiceKey<V4>, Service>(pins, map),
        names::SERVICES_V6 => hash::<ServiceKey<V6>, Service>(pins, map),
        names::SETS => array::<EndpointSet>(pins, map),
        names::RINGS => array::<RingSlot>(pins, map),
        names::BACKENDS_V4 => array::<Backend<V4>>(pins, map),
        names::BACKENDS_V6 => array::<Backend<V6>>(pins, map),
        names::CONNTRACK_V4 | names::NEW_FLOWS_V4 => hash::<FlowKey<V4>, Flow<V4>>(pins, map),
        names::CONNTRACK_V6 | names::NEW_FLOWS_V6 => hash::<FlowKey<V6>, Flow<V6>>(pins, map),
        names::SNAT_V4 | names::NEW_SNAT_V4 => hash::<FlowKey<V4>, SnatEntry<V4>>(pins, map),
        names::SNAT_V6 | names::NEW_SNAT_V6 => hash::<FlowKey<V6>, SnatEntry<V6>>(pins, map),
        names::FRAGS_V4 => hash::<FragKey<V4>, FragEntry<V4>>(pins, map),
        names::FRAGS_V6 => hash::<FragKey<V6>, FragEntry<V6>>(pins, map),
        names::AFFINITY => hash::<AffinityKey, AffinityValue>(pins, map),
        names::SRC_RANGES_V4 => prefixes::<SourceRangeKey<V4>>(pins, map),
        names::SRC_RANGES_V6 => prefixes::<SourceRangeKey<V6>>(pins, map),
        names::SOCK_REVNAT_V4 => hash::<SockKey<V4>, SockPeer<V4>>(pins, map),
        names::SOCK_REVNAT_V6 => hash::<SockKey<V6>, SockPeer<V6>>(pins, map),
        names::CURSORS => array::<u64>(pins, map),
        names::LOADS_V4 | names::LOADS_V6 => array::<u32>(pins, map),
        names::SOCK_LOADS => hash::<SockCookie, SockLoad>(pins, map),
        names::IFACES => hash::<u32, Iface>(pins, map),
        names::SWITCHES => array::<Switches>(pins, map),
        names::PORT_NAMES => port_names(pins),
        names::COUNTERS => counters(pins),
        names::VERDICT => Ok(verdicts(per_cpu::<VerdictRecord>(pins, map)?)),
        _ => Err(TableError::NoSuchMap(map.to_owned())),
    }
}

/// How many entries a hash map holds.
pub(super) fn count(pins: &Pins, map: &str) -> Result<usize, TableError> {
    match map {
        names::CONNTRACK_V4 | names::NEW_FLOWS_V4 => Ok(entries::<FlowKey<V4>, Flow<V4>>(pins, map)?.len()),
        names::CONNTRACK_V6 | names::NEW_FLOWS_V6 => Ok(entries::<FlowKey<V6>, Flow<V6>>(pins, map)?.len()),
        names::SNAT_V4 | names::NEW_SNAT_V4 => Ok(entries::<FlowKey<V4>, SnatEntry<V4>>(pins, map)?.len()),
        names::SNAT_V6 | names::NEW_SNAT_V6 => Ok(entries::<FlowKey<V6>, SnatEntry<V6>>(pins, map)?.len()),
        names::FRAGS_V4 => Ok(entries::<FragKey<V4>, FragEntry<V4>>(pins, map)?.len()),
        names::FRAGS_V6 => Ok(entries::<FragKey<V6>, FragEntry<V6>>(pins, map)?.len()),
        names::AFFINITY => Ok(entries::<AffinityKey, AffinityValue>(pins, map)?.len()),
        names::SOCK_REVNAT_V4 => Ok(entries::<SockKey<V4>, SockPeer<V4>>(pins, map)?.len()),
        names::SOCK_REVNAT_V6 => Ok(entries::<SockKey<V6>, SockPeer<V6>>(pins, map)?.len()),
        names::SOCK_LOADS => Ok(entries::<SockCookie, SockLoad>(pins, map)?.len()),
        _ => Ok(dump(pins, map)?.len()),
    }
}

/// The fields of a struct, without those that only fill it up.
fn fields(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    [", zero: 0", ", zero: [0, 0, 0]"].iter().fold(text, |text, filler| text.replace(filler, ""))
}

fn hash<K: Pod + Debug, V: Pod + Debug>(pins: &Pins, map: &str) -> Result<Vec<Entry>, TableError> {
    let entry = |(key, value): (K, V)| Entry { key: fields(&key), value: fields(&value) };
    let mut found: Vec<_> = entries::<K, V>(pins, map)?.into_iter().map(entry).collect();
    found.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(found)
}

fn array<V: Pod + Debug + PartialEq>(pins: &Pins, map: &str) -> Result<Vec<Entry>, TableError> {
    let values = elements::<V>(pins, map)?;
    // The last element of an array is written last, if ever: it stands for those that were not.
    let unused = values.last().copied().filter(|_| values.len() > 1);
    let used = (0_u32..).zip(&values).filter(|(_, value)| Some(**value) != unused);
    Ok(used.map(|(index, value)| Entry { key: index.to_string(), value: fields(value) }).collect())
}

fn prefixes<K: Pod + Debug>(pins: &Pins, map: &str) -> Result<Vec<Entry>, TableError> {
    let trie: LpmTrie<MapData, K, u32> = open(pins, map)?;
    let failed = |error| TableError::Read { map: map.to_owned(), error };
    let entry = |key: aya::maps::lpm_trie::Key<K>| {
        let data = key.data();
        Entry { key: format!("{data:?} prefix length {}", key.prefix_len()), value: "allow".to_owned() }
    };
    trie.keys().map(|key| key.map(entry).map_err(failed)).collect()
}

fn port_names(pins: &Pins) -> Result<Vec<Entry>, TableError> {
    let names = PortNames::read(pins)?;
    let mut ids: Vec<u32> = entries::<u32, PortName>(pins, names::PORT_NAMES)?.into_iter().map(|(id, _)| id).collect();
    ids.sort_unstable();
    Ok(ids.into_iter().map(|id| Entry { key: id.to_string(), value: names.get(id) }).collect())
}

fn counters(pins: &Pins) -> Result<Vec<Entry>, TableError> {
    let values = per_cpu::<u64>(pins, names::COUNTERS)?;
    let entry = |(number, per_cpu): (u32, Vec<u64>)| {
        let reason = Reason::from_number(number)?;
        let sum: u64 = per_cpu.iter().sum();
        Some(Entry { key: format!("{number} {}", reason.name()), value: format!("{sum} (per CPU: {per_cpu:?})") })
    };
    Ok((0..).zip(values).filter_map(entry).collect())
}

fn verdicts(values: Vec<Vec<VerdictRecord>>) -> Vec<Entry> {
    let entry =
        |(cpu, record): (usize, VerdictRecord)| Entry { key: format!("CPU {cpu}"), value: format!("{record:?}") };
    values.into_iter().flatten().enumerate().map(entry).collect()
}
