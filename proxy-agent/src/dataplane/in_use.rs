//! Which addresses open connections still use, by CONNTRACK. Called by the agent now and then while an address is retired
//! (see `reconcile::addresses`), and by the kernel executor of the scenarios. Reads the whole table: not for the main loop.

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
};
use proxy_common::{
    abi::{Flow, FlowKey, FlowKind, FlowState, names},
    net::{Family, SCTP, TCP, V4, V6},
};

use super::{DataplaneError, MapFamily};

/// A connection without any packet from its client for this long is taken as over: net.netfilter's
/// nf_conntrack_tcp_timeout_established, in seconds.
const IDLE_S: u32 = 432_000;
/// The same for one that never came to be, or that one side has closed.
const HALF_OPEN_S: u32 = 3_600;

/// Those of `wanted` that are the frontend of an open TCP connection, by the maps that are pinned in `dir`.
pub fn frontends_in_use(dir: &Path, wanted: &BTreeSet<IpAddr>, now_s: u32) -> Result<BTreeSet<IpAddr>, DataplaneError> {
    let mut found = BTreeSet::new();
    collect::<V4>(dir, names::CONNTRACK_V4, wanted, now_s, &mut found)?;
    collect::<V6>(dir, names::CONNTRACK_V6, wanted, now_s, &mut found)?;
    Ok(found)
}

fn collect<F: MapFamily>(
    dir: &Path,
    name: &'static str,
    wanted: &BTreeSet<IpAddr>,
    now_s: u32,
    found: &mut BTreeSet<IpAddr>,
) -> Result<(), DataplaneError>
where
    FlowKey<F>: Pod,
    Flow<F>: Pod,
{
    if !wanted.iter().any(|ip| F::from_ip(*ip).is_some()) {
        return Ok(());
    }
    let data = MapData::from_pin(dir.join(name)).map_err(|source| DataplaneError::Open { map: name, source })?;
    let open = |source| DataplaneError::Open { map: name, source };
    let map = HashMap::<_, FlowKey<F>, Flow<F>>::try_from(Map::from_map_data(data).map_err(open)?).map_err(open)?;
    for entry in map.iter() {
        // An element may go while the table is read.
        let Ok((key, flow)) = entry else { continue };
        found.extend(frontend_of(&key, &flow, now_s).filter(|ip| wanted.contains(ip)));
    }
    Ok(())
}

/// The frontend's address, if the entry is that of an open TCP connection or SCTP association. Datagrams to a Service that is gone find none.
pub fn frontend_of<F: MapFamily>(key: &FlowKey<F>, flow: &Flow<F>, now_s: u32) -> Option<IpAddr> {
    is_open(key, flow, now_s).then(|| F::to_ip(flow.frontend))
}

/// True for the entry of an open TCP connection or SCTP association.
pub(super) fn is_open<F: Family>(key: &FlowKey<F>, flow: &Flow<F>, now_s: u32) -> bool {
    let limit = match flow.state {
        FlowState::None | FlowState::Closed => return false,
        FlowState::Established => IDLE_S,
        FlowState::New | FlowState::FinFromClient | FlowState::FinFromBackend => HALF_OPEN_S,
    };
    let connection = matches!(key.protocol, TCP | SCTP);
    connection && matches!(flow.kind, FlowKind::Forward) && now_s.wrapping_sub(flow.last_seen_s) <= limit
}

#[cfg(test)]
mod tests {
    use proxy_common::net::{Address, UDP};

    use super::*;

    #[test]
    fn open_connections_count_and_nothing_else() {
        let addr = V4::from_ip("192.0.2.127".parse().expect("an address")).expect("IPv4");
        let zero = <V4 as proxy_common::net::Family>::Addr::ZERO;
        let found = |kind, state, protocol, idle_s: u32| {
            let flow = Flow::<V4> { frontend: addr, kind, state, last_seen_s: 1_000_000, ..Flow::EMPTY };
            frontend_of(&FlowKey::new(zero, 40000, addr, 80, protocol), &flow, 1_000_000 + idle_s).is_some()
        };
        let (forward, established) = (FlowKind::Forward, FlowState::Established);
        assert!(found(forward, established, TCP, 86_400));
        assert!(found(forward, established, SCTP, 1));
        assert!(found(forward, FlowState::New, TCP, 1));
        assert!(!found(forward, FlowState::New, TCP, 4_000));
        assert!(!found(forward, established, TCP, 500_000));
        assert!(!found(forward, FlowState::Closed, TCP, 1));
        assert!(!found(forward, established, UDP, 1));
        assert!(!found(FlowKind::Reply, established, TCP, 1));
    }
}
