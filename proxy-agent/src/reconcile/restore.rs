//! Ids, sets and ring ranges out of what stands in the maps, so that a restart changes nothing.

use std::{
    collections::{BTreeSet, HashMap},
    time::Instant,
};

use proxy_common::{
    abi::PortName,
    net::{V4, V6},
};

use super::{
    ids::{IdAllocator, Restored},
    mirror::{Mirror, ReconcileFamily, sets_of},
    rings::{Range, RingAllocator},
};
use crate::{
    dataplane::{Capacity, port_name_text},
    desired::SetKind,
    model::{Family, Protocol, ServiceName, ServicePortName},
};

type Sets = HashMap<(u32, Family, SetKind), u32>;

pub(super) fn restore(mirror: &Mirror, capacity: &Capacity, now: Instant) -> (IdAllocator, RingAllocator) {
    let actual = mirror.actual();
    let mut sets = Sets::new();
    collect_sets::<V4>(mirror, &mut sets);
    collect_sets::<V6>(mirror, &mut sets);
    // Also sets that no frontend refers to (the agent ended between two writes): their words must not come to name
    // somebody else's range.
    let held = (0u32..)
        .zip(&actual.sets)
        .filter(|(_, set)| set.len > 0)
        .map(|(index, set)| (index, Range { start: set.start, len: set.len }))
        .collect();
    let restored = Restored {
        ports: ports(mirror),
        sets,
        backends_v4: V4::index(mirror).used_backends(),
        backends_v6: V6::index(mirror).used_backends(),
    };
    (IdAllocator::restore(capacity, restored, now), RingAllocator::restore(capacity.rings, held))
}

fn collect_sets<F: ReconcileFamily>(mirror: &Mirror, sets: &mut Sets) {
    for value in F::tables(mirror.actual()).services.values() {
        for (kind, index) in sets_of(value) {
            sets.insert((value.id, F::FAMILY, kind), index);
        }
    }
}

/// Every service-port id in the maps. One without a name (which Weir never leaves behind) belongs to no Service
/// and is removed with the other unclaimed ones.
fn ports(mirror: &Mirror) -> Vec<(ServicePortName, u32)> {
    let names = &mirror.actual().port_names;
    let nameless: BTreeSet<u32> =
        V4::index(mirror).ports().chain(V6::index(mirror).ports()).filter(|id| !names.contains_key(id)).collect();
    let unknown = |id: u32| ServicePortName::new(ServiceName::new("", format!("#{id}")), "", Protocol::Tcp);
    let mut seen = BTreeSet::new();
    let named = names.iter().map(|(id, name)| {
        let name = parse_port_name(name).filter(|name| seen.insert(name.clone()));
        (name.unwrap_or_else(|| unknown(*id)), *id)
    });
    named.chain(nameless.into_iter().map(|id| (unknown(id), id))).collect()
}

/// The entry of PORT_NAMES for a service-port.
pub(super) fn port_name(name: &ServicePortName) -> PortName {
    let text = match &*name.port {
        "" => name.service.to_string(),
        port => format!("{}:{port}", name.service),
    };
    let mut entry = PortName { text: [0; 144], protocol: name.protocol.number(), zero: [0; 3] };
    // The API server admits no names that would not fit (63 + 63 + 15 bytes); a longer one is cut.
    let len = text.len().min(entry.text.len());
    entry.text[..len].copy_from_slice(&text.as_bytes()[..len]);
    entry
}

fn parse_port_name(entry: &PortName) -> Option<ServicePortName> {
    let text = port_name_text(entry);
    let (namespace, rest) = text.split_once('/')?;
    let (name, port) = rest.split_once(':').unwrap_or((rest, ""));
    let protocol = Protocol::from_number(entry.protocol)?;
    Some(ServicePortName::new(ServiceName::new(namespace, name), port, protocol))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_map() {
        for (port, protocol) in [("http", Protocol::Tcp), ("", Protocol::Udp)] {
            let name = ServicePortName::new(ServiceName::new("kube-system", "dns"), port, protocol);
            assert_eq!(parse_port_name(&port_name(&name)), Some(name));
        }
    }
}
