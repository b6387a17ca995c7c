//! [`Actual`]: what stands in the maps, in plain collections. Read back from the kernel, mirrored by the
//! reconciler, and the whole of [`super::FakeMaps`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
};

use proxy_common::{
    abi::{
        AddressInfo, Backend, EmptySet, EndpointSet, Iface, PortName, RingSlot, Service, ServiceKey, SourceRangeKey,
        Switches,
    },
    net::{V4, V6},
};

use super::{FamilyOp, MapFamily, MapOp};

/// An entry of SRC_RANGES.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceRange<F: MapFamily> {
    pub key: SourceRangeKey<F>,
    /// Bits of the client's address that count (the key in the map has 32 more, for the service-port).
    pub prefix_len: u8,
}

/// The maps of one family. Arrays are as long as their highest index that was ever written.
#[derive(Clone, Debug, PartialEq)]
pub struct FamilyTables<F: MapFamily> {
    pub addrs: HashMap<F::Addr, AddressInfo>,
    pub services: HashMap<ServiceKey<F>, Service>,
    pub backends: Vec<Backend<F>>,
    pub source_ranges: BTreeSet<SourceRange<F>>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Actual {
    pub v4: FamilyTables<V4>,
    pub v6: FamilyTables<V6>,
    pub sets: Vec<EndpointSet>,
    pub rings: Vec<RingSlot>,
    pub port_names: BTreeMap<u32, PortName>,
    pub ifaces: BTreeMap<u32, Iface>,
    pub switches: Switches,
}

impl<F: MapFamily> Default for FamilyTables<F> {
    fn default() -> Self {
        Self { addrs: HashMap::new(), services: HashMap::new(), backends: Vec::new(), source_ranges: BTreeSet::new() }
    }
}

impl Default for Actual {
    fn default() -> Self {
        Self {
            v4: FamilyTables::default(),
            v6: FamilyTables::default(),
            sets: Vec::new(),
            rings: Vec::new(),
            port_names: BTreeMap::new(),
            ifaces: BTreeMap::new(),
            switches: Switches::DEFAULT,
        }
    }
}

impl Actual {
    /// Carries out one write.
    pub fn apply(&mut self, op: &MapOp) {
        match op {
            MapOp::V4(op) => self.v4.apply(op),
            MapOp::V6(op) => self.v6.apply(op),
            MapOp::WriteRing { start, slots } => {
                let start = *start as usize;
                let zero = RingSlot { backend: 0, set: 0 };
                grow(&mut self.rings, start + slots.len(), zero);
                self.rings[start..start + slots.len()].copy_from_slice(slots);
            }
            MapOp::WriteSet { index, set } => write_at(&mut self.sets, *index, *set, EMPTY_SET),
            MapOp::PutPortName(id, name) => {
                self.port_names.insert(*id, **name);
            }
            MapOp::DeletePortName(id) => {
                self.port_names.remove(id);
            }
            MapOp::PutIface(index, iface) => {
                self.ifaces.insert(*index, *iface);
            }
            MapOp::DeleteIface(index) => {
                self.ifaces.remove(index);
            }
            MapOp::WriteSwitches(switches) => self.switches = **switches,
        }
    }

    /// The set at `index`; a set that was never written is empty.
    #[must_use]
    pub fn set(&self, index: u32) -> EndpointSet {
        self.sets.get(index as usize).copied().unwrap_or(EMPTY_SET)
    }

    /// The slots of a set, or none if it points outside of what was ever written.
    #[must_use]
    pub fn ring(&self, set: EndpointSet) -> &[RingSlot] {
        let start = set.start as usize;
        if set.len == 0 {
            return &[];
        }
        self.rings.get(start..start + set.len as usize).unwrap_or(&[])
    }
}

/// What a zeroed element of SETS means.
const EMPTY_SET: EndpointSet = EndpointSet::empty(EmptySet::Refuse);

impl<F: MapFamily> FamilyTables<F> {
    fn apply(&mut self, op: &FamilyOp<F>) {
        match op {
            FamilyOp::PutAddr(addr, info) => {
                self.addrs.insert(*addr, *info);
            }
            FamilyOp::DeleteAddr(addr) => {
                self.addrs.remove(addr);
            }
            FamilyOp::PutService(key, value) => {
                self.services.insert(*key, *value);
            }
            FamilyOp::DeleteService(key) => {
                self.services.remove(key);
            }
            FamilyOp::PutBackend(id, backend) => write_at(&mut self.backends, *id, *backend, Self::FREE_BACKEND),
            FamilyOp::PutSourceRange(range) => {
                self.source_ranges.insert(*range);
            }
            FamilyOp::DeleteSourceRange(range) => {
                self.source_ranges.remove(range);
            }
        }
    }

    /// A zeroed element of BACKENDS.
    pub const FREE_BACKEND: Backend<F> = Backend::FREE;

    /// The element `id` of BACKENDS.
    #[must_use]
    pub fn backend(&self, id: u32) -> Backend<F> {
        self.backends.get(id as usize).copied().unwrap_or(Self::FREE_BACKEND)
    }
}

impl<F: MapFamily> fmt::Display for SourceRange<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} of service-port {}", self.key.client, self.prefix_len, self.key.service)
    }
}

fn grow<T: Clone>(array: &mut Vec<T>, len: usize, zero: T) {
    if array.len() < len {
        array.resize(len, zero);
    }
}

fn write_at<T: Clone>(array: &mut Vec<T>, index: u32, value: T, zero: T) {
    grow(array, index as usize + 1, zero);
    array[index as usize] = value;
}
