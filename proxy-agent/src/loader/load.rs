//! Maps and programs into the kernel. Maps that are pinned already are taken over if they still fit, else copied.

use std::path::Path;

use aya::{Ebpf, EbpfLoader, maps::MapInfo, programs::Program};
use proxy_common::abi::{self, Config, names};

use super::{
    Capacities, ConnectHooks, LoaderError,
    hooks::{CGROUP_HOOKS, TC_HOOKS},
    migrate::{Migration, Prepared},
    pin_error,
    pins::Pins,
};
use crate::fault::{self, FaultPoint};

/// The object in the kernel, its programs not yet attached by this process.
#[derive(Debug)]
pub struct Loaded {
    pub ebpf: Ebpf,
    /// What is pinned had another layout, and its programs are still at work.
    pub migration: Option<Migration>,
    /// The tables that the agent writes are empty although programs of an earlier run are at work: these are better replaced
    /// only when the tables are filled.
    pub waits_for_sync: bool,
}

/// What is fixed at load. The seed is a digest of the node's name: selection stays the same over restarts, and differs
/// between nodes.
pub fn config_for(node: &str, netns_cookie: u64, connect: ConnectHooks, masquerade_all: bool) -> Config {
    let mut flags = abi::CONFIG_IPV4 | abi::CONFIG_IPV6;
    flags |= match connect {
        ConnectHooks::All => abi::CONFIG_CONNECT_HOST | abi::CONFIG_CONNECT_PODS,
        ConnectHooks::Host => abi::CONFIG_CONNECT_HOST,
        ConnectHooks::Off => 0,
    };
    if masquerade_all {
        flags |= abi::CONFIG_MASQUERADE_ALL;
    }
    Config { host_netns_cookie: netns_cookie, flags, seed: fnv1a(node), ..Config::DEFAULT }
}

/// `object` is the ELF file of the kernel programs. All programs are loaded, so that a verifier error shows before anything
/// that runs is touched.
pub fn load(object: &[u8], pins: &Pins, config: &Config, capacities: &Capacities) -> Result<Loaded, LoaderError> {
    pins.create().map_err(pin_error("create", pins.links()))?;
    set_unfit_aside(object, pins, capacities)?;
    fault::reach(FaultPoint::UnfitMoved);
    let others = pins.others().map_err(pin_error("list", pins.root()))?;
    let is_ready = pins.is_ready();
    if !others.is_empty() && !is_ready {
        pins.mark_incomplete().map_err(pin_error("mark as incomplete", pins.dir()))?;
    }
    let mut loader = EbpfLoader::new();
    loader.override_global("CONFIG", config, true);
    for name in names::PINNED {
        loader.map_pin_path(name, pins.map(name));
        if let Some(entries) = capacities.of(name) {
            loader.map_max_entries(name, entries);
        }
    }
    let mut ebpf = loader.load(object).map_err(LoaderError::Maps)?;
    fault::reach(FaultPoint::MapsMade);
    load_programs(&mut ebpf)?;
    fault::reach(FaultPoint::ProgramsLoaded);
    if others.is_empty() {
        return Ok(Loaded { ebpf, migration: None, waits_for_sync: false });
    }
    let Prepared { migration, tables_copied } = Migration::prepare(pins, others, is_ready)?;
    Ok(Loaded { ebpf, migration: Some(migration), waits_for_sync: !tables_copied })
}

/// Loads everything with small tables, pins nothing and lets go of it again: whether this kernel takes the programs. Returns how
/// many there are. For `weir check`.
pub fn try_load(object: &[u8]) -> Result<usize, LoaderError> {
    const ENTRIES: u32 = 64;
    let defaults = Capacities::default();
    let mut loader = EbpfLoader::new();
    for name in names::PINNED.into_iter().filter(|name| defaults.of(name).is_some()) {
        loader.map_max_entries(name, ENTRIES);
    }
    let mut ebpf = loader.load(object).map_err(LoaderError::Maps)?;
    load_programs(&mut ebpf)?;
    Ok(TC_HOOKS.len() + CGROUP_HOOKS.len())
}

fn load_programs(ebpf: &mut Ebpf) -> Result<(), LoaderError> {
    for hook in TC_HOOKS.iter().chain(&CGROUP_HOOKS) {
        let name = hook.program;
        let program = ebpf.program_mut(name).ok_or(LoaderError::NoProgram(name))?;
        let result = match program {
            Program::SchedClassifier(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            _ => return Err(LoaderError::NoProgram(name)),
        };
        result.map_err(|error| LoaderError::Program { program: name, error })?;
    }
    Ok(())
}

/// aya takes any pinned map of the right name. If one has another shape than the object's (capacities were changed), all of them
/// go aside and are copied: tables refer to each other by index.
fn set_unfit_aside(object: &[u8], pins: &Pins, capacities: &Capacities) -> Result<(), LoaderError> {
    let object = aya_obj::Object::parse(object)?;
    let mut is_unfit = false;
    for name in names::PINNED {
        let wanted = object.maps.get(name).ok_or(LoaderError::NoMap(name))?;
        let entries = capacities.of(name).unwrap_or(wanted.max_entries());
        let wanted = Shape { kind: wanted.map_type(), key: wanted.key_size(), value: wanted.value_size(), entries };
        if let Some(found) = Shape::of_pin(&pins.map(name))
            && found != wanted
        {
            tracing::info!(
                map = name,
                ?found,
                ?wanted,
                "the pinned map does not fit; all maps are made anew and copied"
            );
            is_unfit = true;
        }
    }
    if is_unfit {
        pins.set_aside().map_err(pin_error("set aside", pins.dir()))?;
        pins.create().map_err(pin_error("create", pins.links()))?;
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    kind: u32,
    /// Bytes.
    key: u32,
    value: u32,
    entries: u32,
}

impl Shape {
    /// `None` if nothing (or no map) is pinned there.
    fn of_pin(path: &Path) -> Option<Self> {
        if !path.exists() {
            return None;
        }
        let info = MapInfo::from_pin(path).ok()?;
        let kind = info.map_type().ok()? as u32;
        Some(Self { kind, key: info.key_size(), value: info.value_size(), entries: info.max_entries() })
    }
}

/// FNV-1a, 32 bits: short, and the same in every build.
fn fnv1a(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_is_fixed_by_the_node_name() {
        // Test vectors of the algorithm's authors.
        assert_eq!(fnv1a(""), 0x811c_9dc5);
        assert_eq!(fnv1a("foobar"), 0xbf9c_f968);
        let config = config_for("node-a", 7, ConnectHooks::Host, true);
        assert_eq!(config.host_netns_cookie, 7);
        assert!(config.has(abi::CONFIG_CONNECT_HOST) && !config.has(abi::CONFIG_CONNECT_PODS));
        assert!(config.has(abi::CONFIG_MASQUERADE_ALL));
        assert_ne!(config.seed, config_for("node-b", 7, ConnectHooks::Host, true).seed);
    }
}
