//! What would be cut if the programs went now: translated flows by kind. Sockets that connect hooks translated are counted too;
//! they talk to their endpoints directly and are not cut.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use aya::Pod;
use proxy_common::{
    abi::{
        FLOW_HAIRPIN, FLOW_OWN, FLOW_SNAT, FLOW_UNCONFIRMED, Flow, FlowKey, FlowKind, FlowState, SockDirection,
        SockKey, SockPeer, names,
    },
    net::{UDP, V4, V6},
};
use serde::Serialize;

use crate::{
    cli::tables::{TableError, entries, protocol},
    dataplane::MapFamily,
    loader::Pins,
    node,
};

/// nf_conntrack_tcp_timeout_established is five days; nobody waits that long for a connection of which nothing is heard.
const ESTABLISHED_S: u32 = 86_400;
/// One side has closed; the other may have much to say.
const HALF_CLOSED_S: u32 = 3_600;
/// Linux repeats a SYN for this long.
const HANDSHAKE_S: u32 = 63;
/// After both sides have closed, the last acknowledgements are under way.
const CLOSED_S: u32 = 2;
/// Datagrams that nobody answered, or that were answered once (nf_conntrack_udp_timeout).
const ONE_ANSWER_S: u32 = 30;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Left {
    /// By protocol.
    pub(super) flows: BTreeMap<String, usize>,
    /// The same by what becomes of the source.
    pub(super) sources: BTreeMap<&'static str, usize>,
    /// Open sockets that were translated when they connected, by protocol.
    pub(super) sockets: BTreeMap<String, usize>,
    /// Where the flows go.
    #[serde(skip)]
    pub(super) frontends: BTreeSet<IpAddr>,
}

impl Left {
    /// `udp_idle_s`: datagrams that were silent for so long are over.
    pub(super) fn read(pins: &Pins, udp_idle_s: u32) -> Result<Self, TableError> {
        let mut left = Self::default();
        left.add_flows::<V4>(pins, [names::CONNTRACK_V4, names::NEW_FLOWS_V4], udp_idle_s)?;
        left.add_flows::<V6>(pins, [names::CONNTRACK_V6, names::NEW_FLOWS_V6], udp_idle_s)?;
        left.add_sockets::<V4>(pins, names::SOCK_REVNAT_V4)?;
        left.add_sockets::<V6>(pins, names::SOCK_REVNAT_V6)?;
        Ok(left)
    }

    pub(super) fn total(&self) -> usize {
        self.flows.values().sum()
    }

    fn add_flows<F: MapFamily>(&mut self, pins: &Pins, maps: [&str; 2], udp_idle_s: u32) -> Result<(), TableError>
    where
        FlowKey<F>: Pod,
        Flow<F>: Pod,
    {
        for map in maps {
            let found = entries::<FlowKey<F>, Flow<F>>(pins, map)?;
            let now_s = node::seconds_since_boot();
            for (key, flow) in found {
                if is_open(&key, &flow, now_s, udp_idle_s) {
                    *self.flows.entry(protocol(key.protocol)).or_default() += 1;
                    *self.sources.entry(source(&flow)).or_default() += 1;
                    self.frontends.insert(F::to_ip(flow.frontend));
                }
            }
        }
        Ok(())
    }

    /// The entry goes with its socket; those of unconnected UDP sockets age out.
    fn add_sockets<F: MapFamily>(&mut self, pins: &Pins, map: &str) -> Result<(), TableError>
    where
        SockKey<F>: Pod,
        SockPeer<F>: Pod,
    {
        let mut sockets = BTreeSet::new();
        for (key, _) in entries::<SockKey<F>, SockPeer<F>>(pins, map)? {
            if matches!(key.direction, SockDirection::Reply) {
                sockets.insert((key.cookie, key.protocol));
            }
        }
        for (_, number) in sockets {
            *self.sockets.entry(protocol(number)).or_default() += 1;
        }
        Ok(())
    }
}

fn is_open<F: MapFamily>(key: &FlowKey<F>, flow: &Flow<F>, now_s: u32, udp_idle_s: u32) -> bool {
    if !matches!(flow.kind, FlowKind::Forward) {
        return false;
    }
    let limit_s = match flow.state {
        FlowState::None => return false,
        _ if key.protocol == UDP && flow.flags & FLOW_UNCONFIRMED != 0 => udp_idle_s.min(ONE_ANSWER_S),
        _ if key.protocol == UDP => udp_idle_s,
        FlowState::New => HANDSHAKE_S,
        FlowState::Established => ESTABLISHED_S,
        FlowState::FinFromClient | FlowState::FinFromBackend => HALF_CLOSED_S,
        FlowState::Closed => CLOSED_S,
    };
    // A packet may have come since the time was taken.
    now_s.saturating_sub(flow.last_seen_s) <= limit_s
}

fn source<F: MapFamily>(flow: &Flow<F>) -> &'static str {
    match flow.flags {
        flags if flags & FLOW_OWN != 0 => "own",
        flags if flags & FLOW_HAIRPIN != 0 => "hairpin",
        flags if flags & FLOW_SNAT != 0 => "snat",
        _ => "kept",
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.total();
        write!(f, "{total} translated flow{}", if total == 1 { "" } else { "s" })?;
        if total > 0 {
            write!(f, " ({}; source {})", list(&self.flows), list(&self.sources))?;
        }
        if !self.sockets.is_empty() {
            write!(f, "; sockets translated at connect: {}", list(&self.sockets))?;
        }
        Ok(())
    }
}

fn list(counts: &BTreeMap<impl fmt::Display, usize>) -> String {
    let words: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use proxy_common::net::{Address as _, Family, TCP};

    use super::*;

    #[test]
    fn what_counts_as_open() {
        let zero = <V4 as Family>::Addr::ZERO;
        let open = |protocol, state, flags, idle_s: u32| {
            let flow = Flow::<V4> { kind: FlowKind::Forward, state, flags, last_seen_s: 100_000, ..Flow::EMPTY };
            is_open(&FlowKey::new(zero, 40000, zero, 80, protocol), &flow, 100_000 + idle_s, 120)
        };
        assert!(open(TCP, FlowState::Established, 0, 80_000));
        assert!(open(TCP, FlowState::FinFromClient, 0, 600));
        assert!(open(TCP, FlowState::New, FLOW_UNCONFIRMED, 60));
        assert!(!open(TCP, FlowState::New, FLOW_UNCONFIRMED, 70));
        assert!(open(TCP, FlowState::Closed, 0, 1), "the last acknowledgement");
        assert!(!open(TCP, FlowState::Closed, 0, 3));
        assert!(open(UDP, FlowState::Established, 0, 120));
        assert!(!open(UDP, FlowState::Established, 0, 121));
        assert!(!open(UDP, FlowState::Established, FLOW_UNCONFIRMED, 31), "a question and its answer");
        let reply = Flow::<V4> { kind: FlowKind::Reply, state: FlowState::Established, ..Flow::EMPTY };
        assert!(!is_open(&FlowKey::new(zero, 80, zero, 40000, TCP), &reply, 1, 120), "counted once");
    }

    #[test]
    fn in_words() {
        let mut left = Left::default();
        assert_eq!(left.to_string(), "0 translated flows");
        left.flows = [("TCP".to_owned(), 3), ("UDP".to_owned(), 1)].into();
        left.sources = [("kept", 3), ("snat", 1)].into();
        left.sockets = [("UDP".to_owned(), 2)].into();
        let words = "4 translated flows (TCP 3, UDP 1; source kept 3, snat 1); sockets translated at connect: UDP 2";
        assert_eq!(left.to_string(), words);
    }
}
