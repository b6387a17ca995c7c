//! Typed, read-only access to the pinned maps for commands. No agent is needed.

use std::{collections::BTreeMap, path::Path};

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapError, MapInfo, MapType, PerCpuArray},
};
use proxy_common::abi::{PortName, names};

use crate::{
    dataplane::{Actual, Dataplane as _, DataplaneError, KernelMaps},
    loader::Pins,
};

#[derive(Debug, thiserror::Error)]
pub(super) enum TableError {
    /// The exit code is its own.
    #[error("nothing is loaded: no maps are pinned at {0} (another directory is named by --pin-root)")]
    NothingLoaded(String),
    #[error("read map {map}: {error}")]
    Read { map: String, error: MapError },
    #[error("no map is named {0}; `weir status` lists them")]
    NoSuchMap(String),
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
}

/// The pins below `root`, if anything is pinned there.
pub(super) fn pins(root: &Path) -> Result<Pins, TableError> {
    let pins = Pins::new(root);
    if pins.map(names::SETS).exists() {
        return Ok(pins);
    }
    Err(TableError::NothingLoaded(pins.dir().display().to_string()))
}

/// Everything that the agent writes.
pub(super) fn actual(pins: &Pins) -> Result<Actual, TableError> {
    Ok(KernelMaps::from_pins(pins.dir())?.read_all()?)
}

fn failed(map: &str) -> impl Fn(MapError) -> TableError {
    move |error| TableError::Read { map: map.to_owned(), error }
}

pub(super) fn open<M: TryFrom<Map, Error = MapError>>(pins: &Pins, map: &str) -> Result<M, TableError> {
    let data = MapData::from_pin(pins.map(map)).map_err(failed(map))?;
    Map::from_map_data(data).and_then(M::try_from).map_err(failed(map))
}

/// All entries of a hash map. Entries that go while it is read are left out.
pub(super) fn entries<K: Pod, V: Pod>(pins: &Pins, map: &str) -> Result<Vec<(K, V)>, TableError> {
    let table: HashMap<MapData, K, V> = open(pins, map)?;
    let mut found = Vec::new();
    for entry in table.iter() {
        match entry {
            Ok(entry) => found.push(entry),
            Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(failed(map)(error)),
        }
    }
    Ok(found)
}

/// All elements of an array.
pub(super) fn elements<V: Pod>(pins: &Pins, map: &str) -> Result<Vec<V>, TableError> {
    let array: Array<MapData, V> = open(pins, map)?;
    array.iter().collect::<Result<_, _>>().map_err(failed(map))
}

/// Reads elements of an array one by one.
pub(super) fn element_of<V: Pod>(
    pins: &Pins,
    map: &'static str,
) -> Result<impl Fn(u32) -> Result<V, TableError> + use<V>, TableError> {
    let array: Array<MapData, V> = open(pins, map)?;
    Ok(move |index| array.get(&index, 0).map_err(failed(map)))
}

/// All elements of a per-CPU array: for each index, the value of every CPU.
pub(super) fn per_cpu<V: Pod>(pins: &Pins, map: &str) -> Result<Vec<Vec<V>>, TableError> {
    let array: PerCpuArray<MapData, V> = open(pins, map)?;
    array.iter().map(|values| values.map(|values| values.to_vec())).collect::<Result<_, _>>().map_err(failed(map))
}

/// Type and capacity of a pinned map.
pub(super) fn info(pins: &Pins, map: &str) -> Result<(MapType, u32), TableError> {
    let info = MapInfo::from_pin(pins.map(map)).map_err(failed(map))?;
    Ok((info.map_type().map_err(failed(map))?, info.max_entries()))
}

/// Service-port id -> `namespace/name:port/PROTOCOL`.
#[derive(Debug, Default)]
pub(super) struct PortNames(BTreeMap<u32, String>);

impl PortNames {
    pub(super) fn read(pins: &Pins) -> Result<Self, TableError> {
        let names = entries::<u32, PortName>(pins, names::PORT_NAMES)?;
        Ok(Self(names.into_iter().map(|(id, name)| (id, text(&name))).collect()))
    }

    /// The id itself for a service-port that is gone.
    pub(super) fn get(&self, id: u32) -> String {
        self.0.get(&id).cloned().unwrap_or_else(|| format!("#{id} (gone)"))
    }
}

fn text(name: &PortName) -> String {
    let end = name.text.iter().position(|byte| *byte == 0).unwrap_or(name.text.len());
    format!("{}/{}", String::from_utf8_lossy(&name.text[..end]), protocol(name.protocol))
}

/// Protocol number of an IP header, in letters.
pub(super) fn protocol(number: u8) -> String {
    crate::model::Protocol::from_number(number).map_or_else(|| number.to_string(), |protocol| protocol.to_string())
}

/// `address:port`, with brackets around an IPv6 address.
pub(super) fn socket(address: impl Into<std::net::IpAddr>, port: u16) -> String {
    std::net::SocketAddr::new(address.into(), port).to_string()
}
