//! What the elements of the tables that the programs write mean, as far as a copy has to know it: which of two is younger, what a
//! new field begins with, and which digests depend on the key. Called by `copy`.

use proxy_common::{
    abi::{Flow, FlowKey, FragEntry, FragKey, SnatEntry, names},
    net::{V4, V6},
};

use super::layout::{Field, Layout};

/// Tables that the agent writes. They go together, for they refer to each other by index. Counters of the schedulers with them: the
/// agent corrects them later.
pub(super) const AGENT_TABLES: [&str; 16] = [
    names::ADDRS_V4,
    names::ADDRS_V6,
    names::SERVICES_V4,
    names::SERVICES_V6,
    names::SETS,
    names::RINGS,
    names::BACKENDS_V4,
    names::BACKENDS_V6,
    names::SRC_RANGES_V4,
    names::SRC_RANGES_V6,
    names::PORT_NAMES,
    names::IFACES,
    names::SWITCHES,
    names::CURSORS,
    names::LOADS_V4,
    names::LOADS_V6,
];

/// A table that the programs write.
pub(super) struct FlowTable {
    pub(super) name: &'static str,
    /// A key is in one of the two only: the confirmed flows, and the new ones.
    pub(super) settled: Option<&'static str>,
    pub(super) new: Option<&'static str>,
}

const fn single(name: &'static str) -> FlowTable {
    FlowTable { name, settled: None, new: None }
}

const fn settled(name: &'static str, new: &'static str) -> FlowTable {
    FlowTable { name, settled: None, new: Some(new) }
}

const fn new(name: &'static str, settled: &'static str) -> FlowTable {
    FlowTable { name, settled: Some(settled), new: None }
}

/// Confirmed flows before new ones, so that what was confirmed meanwhile is not taken for new.
pub(super) const FLOW_TABLES: [FlowTable; 14] = [
    settled(names::CONNTRACK_V4, names::NEW_FLOWS_V4),
    settled(names::CONNTRACK_V6, names::NEW_FLOWS_V6),
    settled(names::SNAT_V4, names::NEW_SNAT_V4),
    settled(names::SNAT_V6, names::NEW_SNAT_V6),
    new(names::NEW_FLOWS_V4, names::CONNTRACK_V4),
    new(names::NEW_FLOWS_V6, names::CONNTRACK_V6),
    new(names::NEW_SNAT_V4, names::SNAT_V4),
    new(names::NEW_SNAT_V6, names::SNAT_V6),
    single(names::FRAGS_V4),
    single(names::FRAGS_V6),
    single(names::AFFINITY),
    single(names::SOCK_REVNAT_V4),
    single(names::SOCK_REVNAT_V6),
    single(names::SOCK_LOADS),
];

/// Where an element says how young it is.
pub(super) struct Age {
    seen: Option<Field>,
    state: Option<Field>,
}

impl Age {
    pub(super) fn of(layout: &Layout) -> Self {
        let seen = ["last_seen_s", "last_used_s", "seen_s"].iter().find_map(|name| layout.field(name));
        Self { seen, state: layout.field("state") }
    }

    /// The time it was last used, and how far the connection has come: a state never goes back.
    pub(super) fn read(&self, value: &[u8]) -> (u64, u64) {
        (number(value, self.seen), number(value, self.state))
    }
}

fn number(value: &[u8], field: Option<Field>) -> u64 {
    let bytes = field.and_then(|field| value.get(field.offset..field.offset + field.size)).unwrap_or_default();
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// An element with the default of every field: what a field gets that the other layout does not have.
pub(super) fn template(table: &str) -> Vec<u8> {
    match table {
        names::CONNTRACK_V4 | names::NEW_FLOWS_V4 => bytes_of(&Flow::<V4>::EMPTY),
        names::CONNTRACK_V6 | names::NEW_FLOWS_V6 => bytes_of(&Flow::<V6>::EMPTY),
        // Zeros.
        _ => Vec::new(),
    }
}

/// Digests of the key are of this build's layout and way to make them.
pub(super) fn renew_digest(table: &str, key: &[u8], value: &mut [u8]) {
    let (check, at) = match table {
        names::CONNTRACK_V4 | names::NEW_FLOWS_V4 => (flow_check::<V4>(key), std::mem::offset_of!(Flow<V4>, check)),
        names::CONNTRACK_V6 | names::NEW_FLOWS_V6 => (flow_check::<V6>(key), std::mem::offset_of!(Flow<V6>, check)),
        names::SNAT_V4 | names::NEW_SNAT_V4 => (flow_check::<V4>(key), std::mem::offset_of!(SnatEntry<V4>, check)),
        names::SNAT_V6 | names::NEW_SNAT_V6 => (flow_check::<V6>(key), std::mem::offset_of!(SnatEntry<V6>, check)),
        names::FRAGS_V4 => (of::<FragKey<V4>>(key).map(|it| it.check()), std::mem::offset_of!(FragEntry<V4>, check)),
        names::FRAGS_V6 => (of::<FragKey<V6>>(key).map(|it| it.check()), std::mem::offset_of!(FragEntry<V6>, check)),
        _ => return,
    };
    if let (Some(check), Some(place)) = (check, value.get_mut(at..at + size_of::<u32>())) {
        place.copy_from_slice(&check.to_ne_bytes());
    }
}

fn flow_check<F: proxy_common::net::Family>(key: &[u8]) -> Option<u32>
where
    FlowKey<F>: aya::Pod,
{
    of::<FlowKey<F>>(key).map(|key| key.check())
}

/// `None` if the length is another. Only for keys, which are numbers through and through.
fn of<K: aya::Pod>(bytes: &[u8]) -> Option<K> {
    // SAFETY: as many bytes as the type has, just checked, and any bytes are a valid key; alignment does not matter to the read.
    (bytes.len() == size_of::<K>()).then(|| unsafe { bytes.as_ptr().cast::<K>().read_unaligned() })
}

fn bytes_of<T: aya::Pod>(value: &T) -> Vec<u8> {
    // SAFETY: types that go into maps have no padding (see `proxy_common::abi`), so each of these bytes is initialised.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }.to_vec()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proxy_common::net::Address as _;

    use super::{super::layout::tests::layout, *};

    #[test]
    fn every_pinned_map_has_its_way() {
        let flows = FLOW_TABLES.iter().map(|table| table.name);
        let known: BTreeSet<&str> =
            AGENT_TABLES.into_iter().chain(flows).chain([names::COUNTERS, names::VERDICT]).collect();
        assert_eq!(known, names::PINNED.into_iter().collect());
    }

    #[test]
    fn the_younger_one_has_been_seen_later_or_is_further() {
        let age = Age::of(&layout(8, &[("last_seen_s", 0, 4), ("state", 4, 2), ("flags", 6, 2)]));
        let value = |seen: u32, state: u16| [&seen.to_le_bytes()[..], &state.to_le_bytes(), &[9, 9]].concat();
        assert!(age.read(&value(300, 1)) > age.read(&value(255, 5)));
        assert!(age.read(&value(300, 3)) > age.read(&value(300, 2)));
    }

    #[test]
    fn digests_are_those_of_this_build() {
        let zero = <V4 as proxy_common::net::Family>::Addr::ZERO;
        let key = FlowKey::<V4>::new(zero, 40000, zero, 80, 6);
        let mut value = template(names::CONNTRACK_V4);
        renew_digest(names::CONNTRACK_V4, &bytes_of(&key), &mut value);
        let mut wanted = Flow::<V4>::EMPTY;
        wanted.check = key.check();
        assert_eq!(value, bytes_of(&wanted));
    }
}
