//! LOADS put right by what stands in the tables: a flow that is evicted, or whose ends fall silent, tells the programs nothing. Called by the
//! agent every few seconds while a Service has the algorithm lc (`agent/loads.rs`). Reads whole tables: not for the main loop.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
};

use aya::{
    Pod,
    maps::{Array, Map, MapData},
};
use proxy_common::{
    abi::{Config, Flow, FlowKey, FlowKind, FlowState, SockCookie, SockLoad, names},
    net::{Family, UDP, V4, V6},
};

use super::{DataplaneError, MapFamily, batch, in_use::is_open};

/// Nobody answers a SYN that was not answered for so long: Linux repeats it six times (net.ipv4.tcp_syn_retries).
const UNANSWERED_S: u32 = 127;

/// Backends whose connections count: id -> generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    pub v4: HashMap<u32, u32>,
    pub v6: HashMap<u32, u32>,
}

/// Ids whose loads were written once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    v4: BTreeSet<u32>,
    v6: BTreeSet<u32>,
}

impl Counted {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

impl Written {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

/// Writes the loads of `counted`, and 0 for those `before` that are not of it any more, to the maps that are pinned in `dir`.
pub fn correct_loads(dir: &Path, counted: &Counted, before: &Written, now_s: u32) -> Result<Written, DataplaneError> {
    let mut loads = Counted::default();
    count_flows::<V4>(dir, &[names::CONNTRACK_V4, names::NEW_FLOWS_V4], &counted.v4, now_s, &mut loads.v4)?;
    count_flows::<V6>(dir, &[names::CONNTRACK_V6, names::NEW_FLOWS_V6], &counted.v6, now_s, &mut loads.v6)?;
    count_sockets(dir, counted, &mut loads)?;
    Ok(Written {
        v4: write(dir, names::LOADS_V4, &counted.v4, &loads.v4, &before.v4)?,
        v6: write(dir, names::LOADS_V6, &counted.v6, &loads.v6, &before.v6)?,
    })
}

fn open(dir: &Path, name: &'static str) -> Result<MapData, DataplaneError> {
    MapData::from_pin(dir.join(name)).map_err(|source| DataplaneError::Open { map: name, source })
}

fn count_flows<F: MapFamily>(
    dir: &Path,
    tables: &[&'static str],
    counted: &HashMap<u32, u32>,
    now_s: u32,
    loads: &mut HashMap<u32, u32>,
) -> Result<(), DataplaneError>
where
    FlowKey<F>: Pod,
    Flow<F>: Pod,
{
    for name in tables.iter().filter(|_| !counted.is_empty()) {
        let visit = |key: &FlowKey<F>, flow: &Flow<F>| {
            if counted.get(&flow.backend_id) == Some(&flow.generation) && counts(key, flow, now_s) {
                *loads.entry(flow.backend_id).or_default() += 1;
            }
        };
        batch::for_each(&open(dir, name)?, visit).map_err(|source| DataplaneError::Batch { map: name, source })?;
    }
    Ok(())
}

/// True for the forward half of a flow that goes on. One begun under another algorithm counts as well.
fn counts<F: Family>(key: &FlowKey<F>, flow: &Flow<F>, now_s: u32) -> bool {
    if !matches!(flow.kind, FlowKind::Forward) {
        return false;
    }
    let idle_s = now_s.wrapping_sub(flow.last_seen_s);
    match flow.state {
        FlowState::Closed | FlowState::None => false,
        _ if key.protocol == UDP => idle_s <= Config::DEFAULT.udp_timeout_s,
        FlowState::New => idle_s <= UNANSWERED_S,
        _ => is_open(key, flow, now_s),
    }
}

fn count_sockets(dir: &Path, counted: &Counted, loads: &mut Counted) -> Result<(), DataplaneError> {
    if counted.is_empty() {
        return Ok(());
    }
    let map = names::SOCK_LOADS;
    let visit = |_: &SockCookie, load: &SockLoad| {
        let (counted, loads) = if load.family == u32::from(V4::VERSION) {
            (&counted.v4, &mut loads.v4)
        } else {
            (&counted.v6, &mut loads.v6)
        };
        if counted.get(&load.backend) == Some(&load.generation) {
            *loads.entry(load.backend).or_default() += 1;
        }
    };
    batch::for_each(&open(dir, map)?, visit).map_err(|source| DataplaneError::Batch { map, source })
}

fn write(
    dir: &Path,
    name: &'static str,
    counted: &HashMap<u32, u32>,
    loads: &HashMap<u32, u32>,
    before: &BTreeSet<u32>,
) -> Result<BTreeSet<u32>, DataplaneError> {
    let ids: BTreeSet<u32> = counted.keys().copied().collect();
    if ids.is_empty() && before.is_empty() {
        return Ok(ids);
    }
    let error = |source| DataplaneError::Open { map: name, source };
    let map = Map::from_map_data(open(dir, name)?).map_err(error)?;
    let mut array = Array::<MapData, u32>::try_from(map).map_err(error)?;
    for id in ids.union(before) {
        let load = if ids.contains(id) { loads.get(id).copied().unwrap_or(0) } else { 0 };
        let there = array.get(id, 0).map_err(|source| DataplaneError::Read { map: name, source })?;
        if there != load {
            let op = || format!("correct the load of backend {id}");
            array.set(*id, load, 0).map_err(|source| DataplaneError::Write { map: name, op: op(), source })?;
        }
    }
    Ok(ids)
}
