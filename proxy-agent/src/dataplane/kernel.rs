//! The maps in the kernel, through aya. The loader opens them from their pins and hands them to the reconciler.

use std::path::Path;

use aya::{
    Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, lpm_trie::Key},
};
use proxy_common::{
    abi::{
        AddressInfo, Backend, EndpointSet, Iface, PortName, RingSlot, Service, ServiceKey, SourceRangeKey, Switches,
        names,
    },
    net::{V4, V6},
};

use crate::fault;

use super::{
    Actual, Capacity, Dataplane, DataplaneError, FamilyOp, FamilyTables, MapFamily, MapOp, SourceRange, sets::SetWords,
};

/// Value of SRC_RANGES: only the presence of an entry counts.
const ALLOW: u32 = 1;

pub struct KernelMaps {
    v4: FamilyMaps<V4>,
    v6: FamilyMaps<V6>,
    sets: SetWords,
    rings: Array<MapData, RingSlot>,
    port_names: HashMap<MapData, u32, PortName>,
    ifaces: HashMap<MapData, u32, Iface>,
    switches: Array<MapData, Switches>,
    capacity: Capacity,
}

struct FamilyMaps<F: MapFamily>
where
    F::Addr: Pod,
    ServiceKey<F>: Pod,
    Backend<F>: Pod,
    SourceRangeKey<F>: Pod,
{
    addrs: HashMap<MapData, F::Addr, AddressInfo>,
    services: HashMap<MapData, ServiceKey<F>, Service>,
    backends: Array<MapData, Backend<F>>,
    source_ranges: LpmTrie<MapData, SourceRangeKey<F>, u32>,
}

impl KernelMaps {
    /// Opens the maps that are pinned, each under its name, in `dir`.
    pub fn from_pins(dir: &Path) -> Result<Self, DataplaneError> {
        Self::open(|name| {
            MapData::from_pin(dir.join(name)).map_err(|source| DataplaneError::Open { map: name, source })
        })
    }

    /// Takes the maps by name, for instance out of a loaded object.
    pub fn from_maps(mut map: impl FnMut(&str) -> Option<MapData>) -> Result<Self, DataplaneError> {
        Self::open(|name| map(name).ok_or(DataplaneError::Missing { map: name }))
    }

    fn open(mut map: impl FnMut(&'static str) -> Result<MapData, DataplaneError>) -> Result<Self, DataplaneError> {
        let mut sized = |name| {
            let data = map(name)?;
            let info = data.info().map_err(|source| DataplaneError::Open { map: name, source })?;
            Ok((data, info.max_entries() as usize))
        };
        let (sets, sets_len) = sized(names::SETS)?;
        let (rings, rings_len) = sized(names::RINGS)?;
        let (port_names, port_names_len) = sized(names::PORT_NAMES)?;
        let (ifaces, ifaces_len) = sized(names::IFACES)?;
        let (switches, _) = sized(names::SWITCHES)?;
        let (v4, v4_len) = FamilyMaps::<V4>::open(&mut sized)?;
        let (v6, v6_len) = FamilyMaps::<V6>::open(&mut sized)?;
        let capacity = Capacity {
            addrs: v4_len.addrs.min(v6_len.addrs),
            services: v4_len.services.min(v6_len.services),
            backends: v4_len.backends.min(v6_len.backends),
            src_ranges: v4_len.src_ranges.min(v6_len.src_ranges),
            sets: sets_len,
            rings: rings_len,
            port_names: port_names_len,
            ifaces: ifaces_len,
        };
        check_set_size(&sets)?;
        Ok(Self {
            v4,
            v6,
            sets: SetWords::new(sets, sets_len)?,
            rings: typed(names::RINGS, rings)?,
            port_names: typed(names::PORT_NAMES, port_names)?,
            ifaces: typed(names::IFACES, ifaces)?,
            switches: typed(names::SWITCHES, switches)?,
            capacity,
        })
    }

    fn write(&mut self, op: &MapOp) -> Result<(), MapError> {
        match op {
            MapOp::V4(op) => self.v4.write(op),
            MapOp::V6(op) => self.v6.write(op),
            MapOp::WriteRing { start, slots } => {
                (*start..).zip(slots).try_for_each(|(index, slot)| self.rings.set(index, slot, 0))
            }
            MapOp::WriteSet { index, set } => {
                let out_of_bounds = MapError::OutOfBounds {
                    index: *index,
                    max_entries: self.capacity.sets.try_into().unwrap_or(u32::MAX),
                };
                if self.sets.store(*index as usize, *set) { Ok(()) } else { Err(out_of_bounds) }
            }
            MapOp::PutPortName(id, name) => self.port_names.insert(id, **name, 0),
            MapOp::DeletePortName(id) => gone(self.port_names.remove(id)),
            MapOp::PutIface(index, iface) => self.ifaces.insert(index, iface, 0),
            MapOp::DeleteIface(index) => gone(self.ifaces.remove(index)),
            MapOp::WriteSwitches(switches) => self.switches.set(0, **switches, 0),
        }
    }

    fn capacity_of(&self, map: &str) -> usize {
        match map {
            names::ADDRS_V4 | names::ADDRS_V6 => self.capacity.addrs,
            names::SERVICES_V4 | names::SERVICES_V6 => self.capacity.services,
            names::BACKENDS_V4 | names::BACKENDS_V6 => self.capacity.backends,
            names::SRC_RANGES_V4 | names::SRC_RANGES_V6 => self.capacity.src_ranges,
            names::SETS => self.capacity.sets,
            names::RINGS => self.capacity.rings,
            names::PORT_NAMES => self.capacity.port_names,
            names::IFACES => self.capacity.ifaces,
            _ => 1,
        }
    }

    /// RINGS, as far as a set points into it: what lies between ranges is not worth the system calls.
    fn read_rings(&self, sets: &[EndpointSet]) -> Result<Vec<RingSlot>, MapError> {
        let len = self.rings.len();
        let end = |set: &EndpointSet| set.start.saturating_add(set.len).min(len);
        let ranges = || sets.iter().filter(|set| set.len > 0 && set.start < len);
        let mut rings = vec![RingSlot { backend: 0, set: 0 }; ranges().map(end).max().unwrap_or(0) as usize];
        for set in ranges() {
            for index in set.start..end(set) {
                rings[index as usize] = self.rings.get(&index, 0)?;
            }
        }
        Ok(rings)
    }
}

impl Dataplane for KernelMaps {
    fn apply(&mut self, op: &MapOp) -> Result<(), DataplaneError> {
        let written = self.write(op);
        fault::reach(op.fault_point());
        written.map_err(|source| {
            let (map, op) = (op.map(), op.to_string());
            if is_full(&source) {
                DataplaneError::Full { map, op, capacity: self.capacity_of(map) }
            } else {
                DataplaneError::Write { map, op, source }
            }
        })
    }

    fn read_all(&self) -> Result<Actual, DataplaneError> {
        let sets = self.sets.load_all();
        Ok(Actual {
            v4: self.v4.read()?,
            v6: self.v6.read()?,
            rings: self.read_rings(&sets).map_err(read_error(names::RINGS))?,
            sets,
            port_names: self.port_names.iter().collect::<Result<_, _>>().map_err(read_error(names::PORT_NAMES))?,
            ifaces: self.ifaces.iter().collect::<Result<_, _>>().map_err(read_error(names::IFACES))?,
            switches: self.switches.get(&0, 0).map_err(read_error(names::SWITCHES))?,
        })
    }

    fn capacity(&self) -> Capacity {
        self.capacity
    }
}

/// Sizes of the maps of one family.
struct FamilyLen {
    addrs: usize,
    services: usize,
    backends: usize,
    src_ranges: usize,
}

impl<F: MapFamily> FamilyMaps<F>
where
    F::Addr: Pod,
    ServiceKey<F>: Pod,
    Backend<F>: Pod,
    SourceRangeKey<F>: Pod,
{
    fn open(
        sized: &mut impl FnMut(&'static str) -> Result<(MapData, usize), DataplaneError>,
    ) -> Result<(Self, FamilyLen), DataplaneError> {
        let (addrs, addrs_len) = sized(F::NAMES.addrs)?;
        let (services, services_len) = sized(F::NAMES.services)?;
        let (backends, backends_len) = sized(F::NAMES.backends)?;
        let (source_ranges, src_ranges_len) = sized(F::NAMES.src_ranges)?;
        let maps = Self {
            addrs: typed(F::NAMES.addrs, addrs)?,
            services: typed(F::NAMES.services, services)?,
            backends: typed(F::NAMES.backends, backends)?,
            source_ranges: typed(F::NAMES.src_ranges, source_ranges)?,
        };
        let len =
            FamilyLen { addrs: addrs_len, services: services_len, backends: backends_len, src_ranges: src_ranges_len };
        Ok((maps, len))
    }

    fn write(&mut self, op: &FamilyOp<F>) -> Result<(), MapError> {
        match op {
            FamilyOp::PutAddr(addr, info) => self.addrs.insert(addr, info, 0),
            FamilyOp::DeleteAddr(addr) => gone(self.addrs.remove(addr)),
            FamilyOp::PutService(key, value) => self.services.insert(key, value, 0),
            FamilyOp::DeleteService(key) => gone(self.services.remove(key)),
            FamilyOp::PutBackend(id, backend) => self.backends.set(*id, backend, 0),
            FamilyOp::PutSourceRange(range) => self.source_ranges.insert(&lpm_key(range), ALLOW, 0),
            FamilyOp::DeleteSourceRange(range) => gone(self.source_ranges.remove(&lpm_key(range))),
        }
    }

    fn read(&self) -> Result<FamilyTables<F>, DataplaneError> {
        let mut backends = (0..self.backends.len())
            .map(|id| self.backends.get(&id, 0))
            .collect::<Result<Vec<_>, _>>()
            .map_err(read_error(F::NAMES.backends))?;
        let used = backends.iter().rposition(|it| *it != FamilyTables::<F>::FREE_BACKEND);
        backends.truncate(used.map_or(0, |last| last + 1));
        Ok(FamilyTables {
            addrs: self.addrs.iter().collect::<Result<_, _>>().map_err(read_error(F::NAMES.addrs))?,
            services: self.services.iter().collect::<Result<_, _>>().map_err(read_error(F::NAMES.services))?,
            backends,
            source_ranges: self
                .source_ranges
                .keys()
                .map(|key| key.map(|key| source_range(&key)))
                .collect::<Result<_, _>>()
                .map_err(read_error(F::NAMES.src_ranges))?,
        })
    }
}

/// Bits of the service-port id in front of the address.
const SERVICE_BITS: u32 = 32;

fn lpm_key<F: MapFamily>(range: &SourceRange<F>) -> Key<SourceRangeKey<F>>
where
    SourceRangeKey<F>: Pod,
{
    Key::new(SERVICE_BITS + u32::from(range.prefix_len), range.key)
}

fn source_range<F: MapFamily>(key: &Key<SourceRangeKey<F>>) -> SourceRange<F>
where
    SourceRangeKey<F>: Pod,
{
    // The kernel keeps the length that was written, which is at most 32 + 128.
    let prefix_len = key.prefix_len().saturating_sub(SERVICE_BITS);
    SourceRange { key: key.data(), prefix_len: prefix_len.try_into().unwrap_or(F::BITS) }
}

fn typed<M: TryFrom<Map, Error = MapError>>(name: &'static str, data: MapData) -> Result<M, DataplaneError> {
    Map::from_map_data(data).and_then(M::try_from).map_err(|source| DataplaneError::Open { map: name, source })
}

fn check_set_size(sets: &MapData) -> Result<(), DataplaneError> {
    let info = sets.info().map_err(|source| DataplaneError::Open { map: names::SETS, source })?;
    if info.value_size() as usize == size_of::<EndpointSet>() {
        return Ok(());
    }
    Err(DataplaneError::Layout {
        map: names::SETS,
        expected: format!("values of {} bytes", size_of::<EndpointSet>()),
        got: format!("{} bytes", info.value_size()),
    })
}

fn read_error(map: &'static str) -> impl Fn(MapError) -> DataplaneError {
    move |source| DataplaneError::Read { map, source }
}

/// To delete what is not there is what was wanted.
fn gone(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        other => other,
    }
}

/// E2BIG: a hash map is full or an array index lies beyond the end. ENOSPC: an LPM trie is full.
fn is_full(error: &MapError) -> bool {
    match error {
        MapError::SyscallError(error) => matches!(error.io_error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)),
        MapError::OutOfBounds { .. } => true,
        _ => false,
    }
}
