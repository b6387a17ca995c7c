//! Why a write or a read of a map failed, in words that name the map, the key and what to do.

use aya::maps::MapError;
use proxy_common::abi::names;

#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    #[error("{op}: map {map} is full ({capacity} entries); raise {}", capacity_flag(map))]
    Full { map: &'static str, op: String, capacity: usize },
    #[error("{op}: map {map}: {source}")]
    Write { map: &'static str, op: String, source: MapError },
    #[error("cannot read map {map}: {source}")]
    Read { map: &'static str, source: MapError },
    #[error("cannot read map {map}: {source}")]
    Batch { map: &'static str, source: std::io::Error },
    #[error("map {map} is missing")]
    Missing { map: &'static str },
    #[error("cannot open map {map}: {source}")]
    Open { map: &'static str, source: MapError },
    #[error("cannot map {map} into memory: {source}")]
    Mmap { map: &'static str, source: nix::errno::Errno },
    #[error("map {map}: expected {expected}, got {got}")]
    Layout { map: &'static str, expected: String, got: String },
    /// Only [`super::FakeMaps`] returns this.
    #[error("{op}: failed because the test said so")]
    Injected { op: String },
}

/// The agent's flag that sets the capacity of a map.
#[must_use]
pub fn capacity_flag(map: &str) -> &'static str {
    match map {
        names::ADDRS_V4 | names::ADDRS_V6 => "--addresses-max",
        names::SERVICES_V4 | names::SERVICES_V6 => "--services-max",
        names::SETS => "--sets-max",
        names::RINGS => "--rings-max",
        names::BACKENDS_V4 | names::BACKENDS_V6 => "--backends-max",
        names::SRC_RANGES_V4 | names::SRC_RANGES_V6 => "--source-ranges-max",
        names::IFACES => "--interfaces-max",
        names::PORT_NAMES => "--port-names-max",
        _ => "its capacity",
    }
}
