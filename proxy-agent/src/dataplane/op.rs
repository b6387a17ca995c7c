//! [`MapOp`]: one write to one map, as data. The diff makes them, a [`super::Dataplane`] carries them out,
//! logs and errors print them.

use std::fmt;

use proxy_common::{
    abi::{
        AddressInfo, Backend, BackendState, EndpointSet, Iface, PortName, RingSlot, Service, ServiceKey, Switches,
        names,
    },
    net::{V4, V6},
};

use super::{MapFamily, SourceRange};
use crate::fault::FaultPoint;

/// A write to a map that exists once per family.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FamilyOp<F: MapFamily> {
    PutAddr(F::Addr, AddressInfo),
    DeleteAddr(F::Addr),
    PutService(ServiceKey<F>, Service),
    DeleteService(ServiceKey<F>),
    PutBackend(u32, Backend<F>),
    PutSourceRange(SourceRange<F>),
    DeleteSourceRange(SourceRange<F>),
}

#[derive(Clone, Debug, PartialEq)]
pub enum MapOp {
    V4(FamilyOp<V4>),
    V6(FamilyOp<V6>),
    /// A whole range of RINGS; no set points at it yet.
    WriteRing {
        start: u32,
        slots: Vec<RingSlot>,
    },
    /// One 64-bit store.
    WriteSet {
        index: u32,
        set: EndpointSet,
    },
    PutPortName(u32, Box<PortName>),
    DeletePortName(u32),
    PutIface(u32, Iface),
    DeleteIface(u32),
    WriteSwitches(Box<Switches>),
}

impl MapOp {
    /// The map that it writes.
    #[must_use]
    pub fn map(&self) -> &'static str {
        match self {
            MapOp::V4(op) => op.map(),
            MapOp::V6(op) => op.map(),
            MapOp::WriteRing { .. } => names::RINGS,
            MapOp::WriteSet { .. } => names::SETS,
            MapOp::PutPortName(..) | MapOp::DeletePortName(_) => names::PORT_NAMES,
            MapOp::PutIface(..) | MapOp::DeleteIface(_) => names::IFACES,
            MapOp::WriteSwitches(_) => names::SWITCHES,
        }
    }

    /// Where a crash after the write is tried.
    pub(super) fn fault_point(&self) -> FaultPoint {
        match self {
            MapOp::V4(op) => op.fault_point(),
            MapOp::V6(op) => op.fault_point(),
            MapOp::WriteRing { .. } => FaultPoint::RingWritten,
            MapOp::WriteSet { .. } => FaultPoint::SetWritten,
            MapOp::PutPortName(..) => FaultPoint::NameWritten,
            MapOp::DeletePortName(_) => FaultPoint::NameDeleted,
            MapOp::PutIface(..) => FaultPoint::InterfaceWritten,
            MapOp::DeleteIface(_) => FaultPoint::InterfaceDeleted,
            MapOp::WriteSwitches(_) => FaultPoint::SwitchesWritten,
        }
    }
}

impl<F: MapFamily> FamilyOp<F> {
    fn map(&self) -> &'static str {
        match self {
            FamilyOp::PutAddr(..) | FamilyOp::DeleteAddr(_) => F::NAMES.addrs,
            FamilyOp::PutService(..) | FamilyOp::DeleteService(_) => F::NAMES.services,
            FamilyOp::PutBackend(..) => F::NAMES.backends,
            FamilyOp::PutSourceRange(_) | FamilyOp::DeleteSourceRange(_) => F::NAMES.src_ranges,
        }
    }

    fn fault_point(&self) -> FaultPoint {
        match self {
            FamilyOp::PutAddr(..) => FaultPoint::AddressWritten,
            FamilyOp::DeleteAddr(_) => FaultPoint::AddressDeleted,
            FamilyOp::PutService(..) => FaultPoint::ServiceWritten,
            FamilyOp::DeleteService(_) => FaultPoint::ServiceDeleted,
            FamilyOp::PutBackend(..) => FaultPoint::BackendWritten,
            FamilyOp::PutSourceRange(_) => FaultPoint::SourceRangeWritten,
            FamilyOp::DeleteSourceRange(_) => FaultPoint::SourceRangeDeleted,
        }
    }
}

impl fmt::Display for MapOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MapOp::V4(op) => op.fmt(f),
            MapOp::V6(op) => op.fmt(f),
            MapOp::WriteRing { start, slots } => write!(f, "write ring {start}..{}", *start as usize + slots.len()),
            MapOp::WriteSet { index, set } if set.len == 0 => write!(f, "empty set {index} ({:?})", set.when_empty()),
            MapOp::WriteSet { index, set } => {
                write!(f, "point set {index} at ring {}..{}", set.start, u64::from(set.start) + u64::from(set.len))
            }
            MapOp::PutPortName(id, name) => write!(f, "put port name {id} = {}", port_name_text(name)),
            MapOp::DeletePortName(id) => write!(f, "delete port name {id}"),
            MapOp::PutIface(index, iface) => write!(f, "put interface {index} = {:?}", iface.role),
            MapOp::DeleteIface(index) => write!(f, "delete interface {index}"),
            MapOp::WriteSwitches(_) => f.write_str("write switches"),
        }
    }
}

impl<F: MapFamily> fmt::Display for FamilyOp<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FamilyOp::PutAddr(addr, info) => write!(f, "put address {addr} flags {:#x}", info.flags),
            FamilyOp::DeleteAddr(addr) => write!(f, "delete address {addr}"),
            FamilyOp::PutService(key, value) => write!(f, "put frontend {} = service-port {}", key_text(key), value.id),
            FamilyOp::DeleteService(key) => write!(f, "delete frontend {}", key_text(key)),
            FamilyOp::PutBackend(id, backend) => {
                let verb = if backend.state == BackendState::Free { "free" } else { "put" };
                write!(f, "{verb} backend {id} = {} port {}", backend.addr, backend.port)
            }
            FamilyOp::PutSourceRange(range) => write!(f, "put source range {range}"),
            FamilyOp::DeleteSourceRange(range) => write!(f, "delete source range {range}"),
        }
    }
}

fn key_text<F: MapFamily>(key: &ServiceKey<F>) -> String {
    format!("{} port {} protocol {}", key.addr, key.port, key.protocol)
}

/// The name without its padding.
pub(crate) fn port_name_text(name: &PortName) -> String {
    let end = name.text.iter().position(|byte| *byte == 0).unwrap_or(name.text.len());
    String::from_utf8_lossy(&name.text[..end]).into_owned()
}
