//! Known flows: the state of a connection, and the care for its other half.

use super::snat::{Kept, SnatOwner, keep_snat};
use super::tables::{Insert, Tables};
use crate::abi::{
    BackendState, FLOW_COUNTED, FLOW_HAIRPIN, FLOW_OWN, FLOW_SNAT, FLOW_UNCONFIRMED, Flow, FlowKey, FlowKind, FlowState,
};
use crate::net::{Address, Family, Packet, TCP_FIN, TCP_RST, TCP_SYN};

/// A flow's other half is looked after at most once in this time.
pub const HEAL_INTERVAL_S: u32 = 1;
/// Linux repeats a SYN+ACK for this long (net.ipv4.tcp_synack_retries is 5).
const SYN_ACK_TIMEOUT_S: u32 = 63;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Client,
    Backend,
}

/// State after a segment (flags `tcp`, or what an SCTP chunk amounts to) or a datagram (`tcp` = 0) from `side`.
#[inline(always)]
#[must_use]
pub fn next_state(state: FlowState, tcp: u8, side: Side) -> FlowState {
    use FlowState::{Closed, Established, FinFromBackend, FinFromClient, New, None};
    if matches!(state, Closed) || tcp & TCP_RST != 0 {
        return Closed;
    }
    if tcp & TCP_FIN != 0 {
        return match (state, side) {
            // Nobody answered yet: no connection to end.
            (None | New, Side::Client) => New,
            (FinFromBackend, Side::Client) | (FinFromClient, Side::Backend) => Closed,
            (_, Side::Client) => FinFromClient,
            (_, Side::Backend) => FinFromBackend,
        };
    }
    match (state, side) {
        (None, Side::Client) => New,
        (None | New, Side::Backend) => Established,
        (state, _) => state,
    }
}

/// The forward half's next state. The end of a connection takes it off its backend's load.
#[inline(always)]
fn advance<F: Family, T: Tables<F>>(tables: &T, forward: &mut Flow<F>, tcp: u8, side: Side) {
    let before = forward.state;
    forward.state = next_state(before, tcp, side);
    let ends = matches!(forward.state, FlowState::Closed) && !matches!(before, FlowState::Closed);
    if ends && forward.flags & FLOW_COUNTED != 0 {
        tables.add_load(forward.backend_id, -1);
    }
}

/// True if both sides were heard. With the client's next packet the flow is confirmed.
#[inline(always)]
pub(super) fn is_answered(state: FlowState) -> bool {
    matches!(state, FlowState::Established | FlowState::FinFromClient | FlowState::FinFromBackend)
}

/// What CONNTRACK says of a packet addressed to us.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// No entry, or one whose flow is over: choose.
    No,
    /// On its way from the client.
    Forward,
    /// The same, and the other half is due for care.
    ForwardHeal,
    /// A reply to a socket of this node.
    OwnReply,
}

/// Looks up a packet addressed to us, notes that it was seen, and copies its entry to `found`.
#[inline(always)]
pub(super) fn lookup_conntrack<F: Family, T: Tables<F>>(
    tables: &T,
    key: &FlowKey<F>,
    packet: &Packet<F>,
    now_s: u32,
    found: &mut Flow<F>,
) -> Known {
    let check = key.check();
    let known = tables.flow(key, |flow| {
        if flow.check != check {
            return Known::No;
        }
        match flow.kind {
            FlowKind::Forward => {
                if is_over(tables, flow, packet, now_s) {
                    return Known::No;
                }
                advance(tables, flow, packet.tcp_flags, Side::Client);
                if !matches!(flow.state, FlowState::Closed) && flow.last_seen_s != now_s {
                    flow.last_seen_s = now_s;
                }
                let confirms = flow.flags & FLOW_UNCONFIRMED != 0 && is_answered(flow.state) && !packet.is_syn();
                // The way back of a hairpin flow tells its SNAT entry nothing of the client's segments.
                let turns = flow.flags & FLOW_HAIRPIN != 0 && packet.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) != 0;
                let due = confirms || turns || now_s.wrapping_sub(flow.healed_s) >= HEAL_INTERVAL_S;
                if due {
                    flow.healed_s = now_s;
                }
                *found = *flow;
                if due { Known::ForwardHeal } else { Known::Forward }
            }
            FlowKind::Reply if flow.flags & FLOW_OWN != 0 => {
                *found = *flow;
                Known::OwnReply
            }
            _ => Known::No,
        }
    });
    known.unwrap_or(Known::No)
}

/// True if the packet opens a new flow although the tuple has an entry.
#[inline(always)]
fn is_over<F: Family, T: Tables<F>>(tables: &T, flow: &Flow<F>, packet: &Packet<F>, now_s: u32) -> bool {
    if !packet.is_of_connection() {
        let idle = now_s.wrapping_sub(flow.last_seen_s) > tables.config().udp_timeout_s;
        return idle || is_gone(tables, flow);
    }
    if !packet.is_syn() {
        return false;
    }
    match flow.state {
        FlowState::Closed => true,
        // A retransmission, or a client that uses the port again after its endpoint died without a word: there is no one left
        // to answer it.
        _ => is_gone(tables, flow),
    }
}

/// True if the flow's endpoint is no longer the one it was at selection.
#[inline(always)]
fn is_gone<F: Family, T: Tables<F>>(tables: &T, flow: &Flow<F>) -> bool {
    match tables.backend(flow.backend_id) {
        Some(backend) => !matches!(backend.state, BackendState::Serving) || backend.generation != flow.generation,
        None => true,
    }
}

/// The key of the flow's reply, as the backend sends it before any SNAT is reversed.
#[inline(always)]
pub(super) fn reply_key<F: Family>(flow: &Flow<F>, client: F::Addr, port: u16, protocol: u8) -> FlowKey<F> {
    FlowKey::<F>::new(flow.backend, flow.backend_port, client, port, protocol)
}

/// The client's port as the stack sees it: the client's own, unless another flow had the tuple. (A hairpin flow has its SNAT port
/// in `source_port`; its forward half keeps the other in `client_port`.)
#[inline(always)]
pub(super) fn stack_port<F: Family>(flow: &Flow<F>) -> u16 {
    if flow.source_port != 0 && flow.flags & FLOW_HAIRPIN == 0 { flow.source_port } else { flow.client_port }
}

/// Makes the other half anew if it was evicted; looking at it also keeps it from being the next to go. The client's answer to
/// the backend takes both halves over into CONNTRACK. False if the flow cannot go on: another has its source port.
#[inline(always)]
pub(super) fn heal<F: Family, T: Tables<F>>(
    tables: &T,
    key: &FlowKey<F>,
    flow: &mut Flow<F>,
    packet: &Packet<F>,
) -> bool {
    let answered = is_answered(flow.state) && !packet.is_syn();
    if answered && flow.flags & FLOW_UNCONFIRMED != 0 {
        flow.flags &= !FLOW_UNCONFIRMED;
        tables.settle_flow(key, flow);
    }
    let port = stack_port(flow);
    let reply = reply_key(flow, key.src, port, key.protocol);
    let check = reply.check();
    flow.check = check;
    let seen_s = flow.last_seen_s;
    let there = tables.flow(&reply, |there| {
        let there_is = there.check == check && !matches!(there.kind, FlowKind::None);
        if there_is {
            there.last_seen_s = seen_s;
        }
        let own = there.client_port == key.src_port
            && there.frontend_port == flow.frontend_port
            && there.frontend == flow.frontend;
        there_is && !(own && answered && there.flags & FLOW_UNCONFIRMED != 0)
    });
    if there != Some(true) {
        flow.kind = FlowKind::Reply;
        flow.client_port = key.src_port;
        if answered {
            tables.settle_flow(&reply, flow);
        } else {
            let _ = tables.put_flow(&reply, flow, Insert::Any);
        }
    }
    if flow.flags & FLOW_HAIRPIN != 0 {
        let snat = FlowKey::<F>::new(flow.backend, flow.backend_port, flow.source, flow.source_port, key.protocol);
        let owner = SnatOwner { client: key.src, client_port: port, flags: FLOW_HAIRPIN, confirmed: answered };
        return keep_snat(tables, &snat, &owner, packet.tcp_flags, flow.last_seen_s) != Kept::Lost;
    }
    if flow.flags & FLOW_SNAT != 0 {
        let source = FlowKey::<F>::new(key.src, port, flow.backend, flow.backend_port, key.protocol);
        let check = source.check();
        if tables.flow(&source, |there| there.check == check && !matches!(there.kind, FlowKind::None)) != Some(true) {
            // Confirmed at egress, once its SNAT entry is.
            flow.flags |= FLOW_UNCONFIRMED;
            flow.kind = FlowKind::Source;
            flow.check = check;
            flow.source = F::Addr::ZERO;
            flow.source_port = 0;
            let _ = tables.put_flow(&source, flow, Insert::Any);
        }
    }
    true
}

/// Tells the forward half of a reply's SYN, FIN or RST: it alone holds the connection's state. False if the reply opens a
/// connection that the forward half knows nothing of. `key` is the reply half's own.
#[inline(always)]
pub(super) fn note_reply<F: Family, T: Tables<F>>(
    tables: &T,
    reply: &Flow<F>,
    key: &FlowKey<F>,
    packet: &Packet<F>,
    now_s: u32,
) -> bool {
    if !packet.is_of_connection() {
        return note_datagram(tables, reply, key, now_s);
    }
    if packet.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) == 0 {
        return true;
    }
    let opens = packet.tcp_flags & TCP_SYN != 0;
    let key = forward_key(reply, key);
    let check = key.check();
    let live = tables.flow(&key, |forward| {
        let live = forward.check == check && is_live(forward, reply, opens, now_s);
        if live {
            advance(tables, forward, packet.tcp_flags, Side::Backend);
            forward.last_seen_s = now_s;
        }
        live
    });
    !opens || live == Some(true)
}

/// The key of the forward half, from the reply half and its key.
#[inline(always)]
fn forward_key<F: Family>(reply: &Flow<F>, key: &FlowKey<F>) -> FlowKey<F> {
    FlowKey::<F>::new(key.dst, reply.client_port, reply.frontend, reply.frontend_port, key.protocol)
}

/// Datagrams of the backend keep a flow as well, once a second. False if the flow is idle for so long that it is over.
#[inline(always)]
fn note_datagram<F: Family, T: Tables<F>>(tables: &T, reply: &Flow<F>, key: &FlowKey<F>, now_s: u32) -> bool {
    let idle_s = now_s.wrapping_sub(reply.last_seen_s);
    if idle_s > tables.config().udp_timeout_s {
        return false;
    }
    if idle_s >= HEAL_INTERVAL_S || reply.flags & FLOW_UNCONFIRMED != 0 {
        let check = key.check();
        tables.flow(key, |half| {
            if half.check == check {
                half.last_seen_s = now_s;
            }
        });
        let key = forward_key(reply, key);
        let check = key.check();
        tables.flow(&key, |forward| {
            if forward.check == check && forward.backend == reply.backend && forward.backend_port == reply.backend_port
            {
                forward.last_seen_s = now_s;
                forward.state = next_state(forward.state, 0, Side::Backend);
            }
        });
    }
    true
}

/// True if a SYN of the client towards the backend does not belong to the flow of the half `source`.
#[inline(always)]
pub(super) fn is_foreign_syn<F: Family, T: Tables<F>>(
    tables: &T,
    source: &Flow<F>,
    packet: &Packet<F>,
    now_s: u32,
) -> bool {
    if !packet.is_syn() {
        return false;
    }
    let client = packet.tuple.src;
    let key = FlowKey::<F>::new(client, source.client_port, source.frontend, source.frontend_port, packet.protocol);
    let check = key.check();
    tables.flow(&key, |forward| forward.check == check && is_live(forward, source, true, now_s)) != Some(true)
}

/// True if `half` belongs to the connection of `forward`. A client that calls the backend directly from a port that it had
/// used for the frontend meets halves that nobody removed: such a connection opens without a SYN to the frontend just before.
#[inline(always)]
fn is_live<F: Family>(forward: &Flow<F>, half: &Flow<F>, opens: bool, now_s: u32) -> bool {
    let recent = !opens
        || matches!(forward.state, FlowState::New)
        || now_s.wrapping_sub(forward.last_seen_s) <= SYN_ACK_TIMEOUT_S;
    recent
        && forward.backend == half.backend
        && forward.backend_port == half.backend_port
        && !matches!(forward.state, FlowState::Closed)
}

/// Takes a half whose connection is over out of the way.
#[inline(always)]
pub(super) fn forget_half<F: Family, T: Tables<F>>(tables: &T, key: &FlowKey<F>) {
    let check = key.check();
    tables.flow(key, |half| {
        if half.check == check {
            half.kind = FlowKind::None;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::TCP_ACK;

    #[test]
    fn a_connection_from_syn_to_fin() {
        use FlowState::*;
        let state = next_state(None, TCP_SYN, Side::Client);
        assert_eq!(state, New);
        let state = next_state(state, TCP_SYN | TCP_ACK, Side::Backend);
        assert_eq!(state, Established);
        let state = next_state(state, TCP_FIN | TCP_ACK, Side::Client);
        assert_eq!(state, FinFromClient);
        assert_eq!(next_state(state, TCP_ACK, Side::Backend), FinFromClient, "one FIN: still open");
        assert_eq!(next_state(state, TCP_FIN, Side::Client), FinFromClient, "the same FIN again");
        assert_eq!(next_state(state, TCP_FIN | TCP_ACK, Side::Backend), Closed);
        assert_eq!(next_state(New, TCP_RST, Side::Backend), Closed);
        assert_eq!(next_state(Closed, TCP_ACK, Side::Client), Closed);
    }
}
