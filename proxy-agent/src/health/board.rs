//! HEALTH: what the active agent would answer, in a pinned map, so that an agent that waits as standby or is just starting says
//! the same. Key 0 holds the facts, every other key is a healthCheckNodePort. No kernel program knows the map.

use std::{collections::BTreeMap, fs, io, path::Path};

use aya::{
    maps::{HashMap, Map, MapData, MapError, MapInfo},
    pin::PinError,
};
use aya_obj::generated::{BPF_F_NO_PREALLOC, bpf_map_type::BPF_MAP_TYPE_HASH};

use super::{
    checks::{Checks, ServiceCheck, owners},
    state::{Facts, Moment, NodeSeen, UPDATE_LIMIT},
};
use crate::{loader::Pins, model::ServiceName};

pub const HEALTH_MAP: &str = "HEALTH";
const FACTS: u32 = 0;
/// More than there are NodePorts by default, and what is not used costs nothing.
const CAPACITY: u32 = 4096;
const NAME_LEN: usize = 64;

/// One element. Times as in [`Moment`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Element {
    /// Zero padded.
    namespace: [u8; NAME_LEN],
    name: [u8; NAME_LEN],
    local_endpoints: u32,
    /// [`NodeSeen`]
    node: u32,
    updated_wall_ns: u64,
    waits_since_ns: u64,
    /// When the active agent last said so.
    posted_ns: u64,
}

const _: () = assert!(size_of::<Element>() == 160);
// SAFETY: `repr(C)` without padding (the size is asserted above), and every bit pattern is valid.
unsafe impl aya::Pod for Element {}

impl Element {
    const EMPTY: Self = Self {
        namespace: [0; NAME_LEN],
        name: [0; NAME_LEN],
        local_endpoints: 0,
        node: 0,
        updated_wall_ns: 0,
        waits_since_ns: 0,
        posted_ns: 0,
    };

    fn service(&self) -> ServiceName {
        ServiceName::new(&*text(&self.namespace), &*text(&self.name))
    }
}

/// What was posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Posted {
    pub(super) facts: Facts,
    posted_ns: u64,
}

impl Posted {
    /// The one who posted it is not too long gone, and no update of his was late.
    pub(super) fn is_live(&self, now: Moment) -> bool {
        self.facts.is_live(now) && !now.is_later_than(self.posted_ns, UPDATE_LIMIT)
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum BoardError {
    #[error("map {HEALTH_MAP}: {0}")]
    Map(#[from] MapError),
    #[error("pin map {HEALTH_MAP}: {0}")]
    Pin(#[from] PinError),
    #[error("unpin map {HEALTH_MAP}: {0}")]
    Unpin(#[from] io::Error),
}

#[derive(Debug)]
pub(super) struct Board(HashMap<MapData, u32, Element>);

impl Board {
    /// For the active agent. What another layout left is given up.
    pub(super) fn create(pins: &Pins) -> Result<Self, BoardError> {
        let path = pins.map(HEALTH_MAP);
        if path.exists() {
            match Self::open(&path) {
                Ok(Some(board)) => return Ok(board),
                _ => fs::remove_file(&path)?,
            }
        }
        let (key, value) = (size_of::<u32>() as u32, size_of::<Element>() as u32);
        let map = aya_obj::Map::new_from_params(BPF_MAP_TYPE_HASH as u32, key, value, CAPACITY, BPF_F_NO_PREALLOC);
        let data = MapData::create(map, HEALTH_MAP, None)?;
        data.pin(path)?;
        Ok(Self(HashMap::try_from(Map::HashMap(data))?))
    }

    /// The one that was posted to last, of all map layouts that have pins below `root`: the agents of an upgrade may differ.
    pub(super) fn newest(root: &Path) -> Option<Self> {
        let of_version = |pins: Pins| Self::open(&pins.map(HEALTH_MAP)).ok().flatten();
        let boards = Pins::all_versions(root).ok()?.into_iter().filter_map(of_version);
        boards.max_by_key(|board| board.0.get(&FACTS, 0).map_or(0, |element| element.posted_ns))
    }

    /// None if it has another layout.
    fn open(path: &Path) -> Result<Option<Self>, MapError> {
        let info = MapInfo::from_pin(path)?;
        if info.key_size() as usize != size_of::<u32>() || info.value_size() as usize != size_of::<Element>() {
            return Ok(None);
        }
        let map = Map::from_map_data(MapData::from_pin(path)?)?;
        Ok(Some(Self(HashMap::try_from(map)?)))
    }

    pub(super) fn post_facts(&mut self, facts: &Facts, now: Moment) -> Result<(), BoardError> {
        let element = Element {
            node: facts.node as u32,
            updated_wall_ns: facts.updated_wall_ns,
            waits_since_ns: facts.waits_since_ns,
            posted_ns: now.boot_ns,
            ..Element::EMPTY
        };
        Ok(self.0.insert(FACTS, element, 0)?)
    }

    /// Exactly these; writes what differs.
    pub(super) fn post_checks(&mut self, checks: &Checks) -> Result<(), BoardError> {
        let old: BTreeMap<u16, Element> = self.elements().collect();
        let before = old.iter().map(|(port, element)| (*port, element.service())).collect();
        let (owners, _) = owners(checks, &before);
        for port in old.keys().filter(|port| !owners.contains_key(port)) {
            self.0.remove(&u32::from(*port))?;
        }
        for (port, service) in owners {
            let element = Element {
                namespace: padded(&service.namespace),
                name: padded(&service.name),
                local_endpoints: checks.get(&service).map_or(0, |check| check.local_endpoints),
                ..Element::EMPTY
            };
            if old.get(&port) != Some(&element) {
                self.0.insert(u32::from(port), element, 0)?;
            }
        }
        Ok(())
    }

    pub(super) fn facts(&self) -> Option<Posted> {
        let element = self.0.get(&FACTS, 0).ok()?;
        let node = match element.node {
            1 => NodeSeen::Leaving,
            2 => NodeSeen::Eligible,
            _ => NodeSeen::Never,
        };
        let Element { updated_wall_ns, waits_since_ns, posted_ns, .. } = element;
        Some(Posted { facts: Facts { updated_wall_ns, waits_since_ns, node }, posted_ns })
    }

    /// 0 if the port is another Service's, or nobody's.
    pub(super) fn local_endpoints(&self, service: &ServiceName, port: u16) -> u32 {
        let element = self.0.get(&u32::from(port), 0).ok().filter(|element| element.service() == *service);
        element.map_or(0, |element| element.local_endpoints)
    }

    pub(super) fn checks(&self) -> Checks {
        let check = |(port, element): (u16, Element)| {
            (element.service(), ServiceCheck { port, local_endpoints: element.local_endpoints })
        };
        self.elements().map(check).collect()
    }

    /// Those of ports. What goes meanwhile is left out.
    fn elements(&self) -> impl Iterator<Item = (u16, Element)> {
        let of_port = |(port, element)| Some((u16::try_from(port).ok().filter(|port| *port != 0)?, element));
        self.0.iter().filter_map(Result::ok).filter_map(of_port)
    }
}

fn padded(text: &str) -> [u8; NAME_LEN] {
    let mut bytes = [0; NAME_LEN];
    let len = text.len().min(NAME_LEN);
    bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
    bytes
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_has_said_for_a_minute_is_not_live() {
        let second = 1_000_000_000;
        let facts = Facts { updated_wall_ns: 1, waits_since_ns: 0, node: NodeSeen::Eligible };
        let posted = Posted { facts, posted_ns: 100 * second };
        let at = |seconds: u64| Moment { boot_ns: seconds * second, wall_ns: 1 };
        assert!(posted.is_live(at(159)));
        assert!(!posted.is_live(at(160)));
        let late = Posted { facts: Facts { waits_since_ns: 100 * second, ..facts }, posted_ns: 159 * second };
        assert!(late.is_live(at(159)));
        assert!(!late.is_live(at(160)), "the one who posts it is alive, but an update of his is late");
    }

    #[test]
    fn names_are_padded_and_read_back() {
        assert_eq!(text(&padded("default")), "default");
        assert_eq!(text(&padded(&"n".repeat(63))), "n".repeat(63));
    }
}
