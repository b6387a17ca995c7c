//! The connection tables, counted. A table has up to 262,144 entries, so a count is kept for a while.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::Path,
    time::{Duration, Instant},
};

use aya::Pod;
use proxy_common::{
    abi::{
        AffinityKey, AffinityValue, Flow, FlowKey, FlowKind, FlowState, FragEntry, FragKey, SnatEntry, SockKey,
        SockPeer, names,
    },
    net::{Family, V4, V6},
};

use super::walk::walk;

/// A count is given again for this long, however often somebody asks.
pub(super) const KEEP: Duration = Duration::from_secs(30);

/// What was found.
#[derive(Clone, Debug, Default)]
pub(super) struct FlowCounts {
    /// Entries, by table.
    pub(super) entries: BTreeMap<&'static str, u64>,
    /// Flows by family and state.
    pub(super) states: BTreeMap<(&'static str, &'static str), u64>,
    /// By family: source ports in use, and of these those towards the endpoint that has most.
    pub(super) ports: BTreeMap<&'static str, (u64, u64)>,
}

#[derive(Debug, Default)]
pub(super) struct FlowCache(Option<(Instant, FlowCounts)>);

impl FlowCache {
    /// Tables that cannot be read are left out.
    pub(super) fn counts(&mut self, dir: &Path) -> &FlowCounts {
        let fresh = self.0.as_ref().is_some_and(|(at, _)| at.elapsed() < KEEP);
        if !fresh {
            let mut counts = FlowCounts::default();
            if let Err(error) = count_all(dir, &mut counts) {
                tracing::debug!(%error, "the connection tables cannot be counted");
            }
            self.0 = Some((Instant::now(), counts));
        }
        &self.0.as_ref().expect("invariant: set above").1
    }
}

fn count_all(dir: &Path, counts: &mut FlowCounts) -> io::Result<()> {
    use names::{
        AFFINITY, CONNTRACK_V4, CONNTRACK_V6, FRAGS_V4, FRAGS_V6, NEW_FLOWS_V4, NEW_FLOWS_V6, NEW_SNAT_V4, NEW_SNAT_V6,
        SNAT_V4, SNAT_V6, SOCK_REVNAT_V4, SOCK_REVNAT_V6,
    };
    flows::<V4>(dir, "IPv4", [CONNTRACK_V4, NEW_FLOWS_V4], counts)?;
    flows::<V6>(dir, "IPv6", [CONNTRACK_V6, NEW_FLOWS_V6], counts)?;
    ports::<V4>(dir, "IPv4", [SNAT_V4, NEW_SNAT_V4], counts)?;
    ports::<V6>(dir, "IPv6", [SNAT_V6, NEW_SNAT_V6], counts)?;
    entries::<FragKey<V4>, FragEntry<V4>>(dir, FRAGS_V4, counts)?;
    entries::<FragKey<V6>, FragEntry<V6>>(dir, FRAGS_V6, counts)?;
    entries::<SockKey<V4>, SockPeer<V4>>(dir, SOCK_REVNAT_V4, counts)?;
    entries::<SockKey<V6>, SockPeer<V6>>(dir, SOCK_REVNAT_V6, counts)?;
    entries::<AffinityKey, AffinityValue>(dir, AFFINITY, counts)
}

/// A flow has one forward half, which alone knows its state.
fn flows<F: Family>(
    dir: &Path,
    family: &'static str,
    maps: [&'static str; 2],
    counts: &mut FlowCounts,
) -> io::Result<()>
where
    FlowKey<F>: Pod,
    Flow<F>: Pod,
{
    let mut states = BTreeMap::from(STATES.map(|state| (state, 0)));
    for map in maps {
        let mut entries = 0;
        walk::<FlowKey<F>, Flow<F>>(&dir.join(map), |_, flow| {
            entries += 1;
            if flow.kind == FlowKind::Forward {
                *states.entry(in_words(flow.state)).or_default() += 1;
            }
        })?;
        counts.entries.insert(map, entries);
    }
    counts.states.extend(states.into_iter().map(|(state, count)| ((family, state), count)));
    Ok(())
}

const STATES: [&str; 5] = ["new", "established", "fin-from-client", "fin-from-backend", "closed"];

fn in_words(state: FlowState) -> &'static str {
    match state {
        FlowState::None | FlowState::New => STATES[0],
        FlowState::Established => STATES[1],
        FlowState::FinFromClient => STATES[2],
        FlowState::FinFromBackend => STATES[3],
        FlowState::Closed => STATES[4],
    }
}

fn ports<F: Family>(
    dir: &Path,
    family: &'static str,
    maps: [&'static str; 2],
    counts: &mut FlowCounts,
) -> io::Result<()>
where
    FlowKey<F>: Pod,
    SnatEntry<F>: Pod,
{
    let mut by_endpoint: HashMap<FlowKey<F>, u64> = HashMap::new();
    let mut all = 0;
    for map in maps {
        let mut entries = 0;
        walk::<FlowKey<F>, SnatEntry<F>>(&dir.join(map), |key, entry| {
            entries += 1;
            if entry.state != FlowState::Closed {
                all += 1;
                *by_endpoint.entry(FlowKey { dst_port: 0, ..*key }).or_default() += 1;
            }
        })?;
        counts.entries.insert(map, entries);
    }
    counts.ports.insert(family, (all, by_endpoint.values().copied().max().unwrap_or_default()));
    Ok(())
}

fn entries<K: Pod, V: Pod>(dir: &Path, map: &'static str, counts: &mut FlowCounts) -> io::Result<()> {
    let mut entries = 0;
    walk::<K, V>(&dir.join(map), |_, _| entries += 1)?;
    counts.entries.insert(map, entries);
    Ok(())
}
