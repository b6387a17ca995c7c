//! What the agent has to know of an address family beyond `proxy_common::net::Family`, so that all code
//! over maps is written once.

use std::net::IpAddr;

use proxy_common::{
    abi::{ServiceCidrs, names},
    net::{Ipv4, Ipv6, V4, V6},
};

use super::{Actual, FamilyOp, FamilyTables, MapOp};
use crate::model;

/// Names of the maps of one family.
#[derive(Clone, Copy, Debug)]
pub struct FamilyNames {
    pub addrs: &'static str,
    pub services: &'static str,
    pub backends: &'static str,
    pub src_ranges: &'static str,
}

pub trait MapFamily: ServiceCidrs {
    const FAMILY: model::Family;
    const NAMES: FamilyNames;
    /// Bits of an address.
    const BITS: u8;

    fn op(op: FamilyOp<Self>) -> MapOp;
    fn tables(actual: &Actual) -> &FamilyTables<Self>;
    fn tables_mut(actual: &mut Actual) -> &mut FamilyTables<Self>;
    fn from_ip(ip: IpAddr) -> Option<Self::Addr>;
    fn to_ip(addr: Self::Addr) -> IpAddr;
}

impl MapFamily for V4 {
    const FAMILY: model::Family = model::Family::V4;
    const NAMES: FamilyNames = FamilyNames {
        addrs: names::ADDRS_V4,
        services: names::SERVICES_V4,
        backends: names::BACKENDS_V4,
        src_ranges: names::SRC_RANGES_V4,
    };
    const BITS: u8 = 32;

    fn op(op: FamilyOp<Self>) -> MapOp {
        MapOp::V4(op)
    }
    fn tables(actual: &Actual) -> &FamilyTables<Self> {
        &actual.v4
    }
    fn tables_mut(actual: &mut Actual) -> &mut FamilyTables<Self> {
        &mut actual.v4
    }
    fn from_ip(ip: IpAddr) -> Option<Ipv4> {
        match ip {
            IpAddr::V4(addr) => Some(addr.into()),
            IpAddr::V6(_) => None,
        }
    }
    fn to_ip(addr: Ipv4) -> IpAddr {
        addr.into()
    }
}

impl MapFamily for V6 {
    const FAMILY: model::Family = model::Family::V6;
    const NAMES: FamilyNames = FamilyNames {
        addrs: names::ADDRS_V6,
        services: names::SERVICES_V6,
        backends: names::BACKENDS_V6,
        src_ranges: names::SRC_RANGES_V6,
    };
    const BITS: u8 = 128;

    fn op(op: FamilyOp<Self>) -> MapOp {
        MapOp::V6(op)
    }
    fn tables(actual: &Actual) -> &FamilyTables<Self> {
        &actual.v6
    }
    fn tables_mut(actual: &mut Actual) -> &mut FamilyTables<Self> {
        &mut actual.v6
    }
    fn from_ip(ip: IpAddr) -> Option<Ipv6> {
        match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(addr) => Some(addr.into()),
        }
    }
    fn to_ip(addr: Ipv6) -> IpAddr {
        addr.into()
    }
}
