//! The connection tables and the drop counters of a node, read from its pins.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::{
    Pod,
    maps::{HashMap, Map, MapData, PerCpuArray},
};
use proxy_agent::loader::Pins;
use proxy_common::{
    abi::{Flow, FlowKey, FlowKind, FlowState, REASON_SLOTS, Reason, SnatEntry, names},
    net::{TCP, V4},
};

use crate::world::Node;

/// The last segments of the last connections may still be under way.
const SETTLE: Duration = Duration::from_secs(5);
/// Reasons from here on are drops.
const FIRST_DROP: u32 = Reason::NoLocalEndpoints as u32;

pub(super) struct Tables {
    pins: Pins,
}

/// Entries of TCP connections over IPv4.
#[derive(Default)]
pub(super) struct Left {
    forward: usize,
    /// Forward entries of connections that nobody has closed.
    open: usize,
    /// Those of connections that were never answered: they stand apart and hold no source port.
    pub(super) unanswered: usize,
    other_halves: usize,
    snat: usize,
    snat_open: usize,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { forward, open, unanswered, other_halves, snat, snat_open } = self;
        write!(
            f,
            "{forward} forward entries ({open} open, {unanswered} never answered), {other_halves} other halves, {snat} source ports ({snat_open} open)"
        )
    }
}

impl Tables {
    pub(super) fn of(node: &Node) -> Self {
        Self { pins: Pins::new(node.pin_dir()) }
    }

    /// Waits until each entry says that its connection is over.
    pub(super) async fn settled(&self) -> Result<Left> {
        let started = Instant::now();
        loop {
            let left = self.left()?;
            if left.open == 0 && left.snat_open == 0 {
                return Ok(left);
            }
            ensure!(started.elapsed() < SETTLE, "entries of connections that are over: {left}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn left(&self) -> Result<Left> {
        let mut left = Left::default();
        for name in [names::CONNTRACK_V4, names::NEW_FLOWS_V4] {
            for (_, flow) in self.entries::<Flow<V4>>(name)? {
                if flow.kind == FlowKind::Forward {
                    left.forward += 1;
                    let unanswered = name == names::NEW_FLOWS_V4 && flow.state == FlowState::New;
                    left.unanswered += usize::from(unanswered);
                    left.open += usize::from(!unanswered && flow.state != FlowState::Closed);
                } else {
                    left.other_halves += 1;
                }
            }
        }
        for name in [names::SNAT_V4, names::NEW_SNAT_V4] {
            for (_, entry) in self.entries::<SnatEntry<V4>>(name)? {
                left.snat += 1;
                left.snat_open += usize::from(entry.state != FlowState::Closed);
            }
        }
        Ok(left)
    }

    fn entries<V: Pod>(&self, name: &str) -> Result<Vec<(FlowKey<V4>, V)>> {
        let map: HashMap<MapData, FlowKey<V4>, V> =
            Map::from_map_data(MapData::from_pin(self.pins.map(name))?)?.try_into()?;
        let all = map.iter().collect::<Result<Vec<_>, _>>().with_context(|| name.to_owned())?;
        Ok(all.into_iter().filter(|(key, _)| key.protocol == TCP).collect())
    }

    /// How often each reason was counted.
    pub(super) fn drops(&self) -> Result<[u64; REASON_SLOTS]> {
        let map = Map::from_map_data(MapData::from_pin(self.pins.map(names::COUNTERS))?)?;
        let counters: PerCpuArray<MapData, u64> = map.try_into()?;
        let mut sums = [0; REASON_SLOTS];
        for (reason, sum) in (0u32..).zip(&mut sums) {
            *sum = counters.get(&reason, 0)?.iter().sum();
        }
        Ok(sums)
    }

    /// Drops counted since then.
    pub(super) fn drops_since(&self, before: &[u64; REASON_SLOTS]) -> Result<Vec<(Reason, u64)>> {
        let now = self.drops()?;
        let drops = Reason::ALL.iter().filter(|reason| **reason as u32 >= FIRST_DROP);
        Ok(drops.map(|it| (*it, now[*it as usize] - before[*it as usize])).filter(|(_, count)| *count > 0).collect())
    }
}
