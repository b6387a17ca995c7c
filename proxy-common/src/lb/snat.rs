//! Source ports on the way to other nodes: choice, reuse, reversal.

use super::tables::{Insert, Tables};
use crate::abi::{Config, FLOW_HAIRPIN, Flow, FlowKey, FlowState, SnatEntry};
use crate::net::{Address, Family, Packet, TCP, TCP_FIN, TCP_RST, TCP_SYN};

use super::conntrack::{Side, next_state};

/// Ports tried for one flow.
pub const SNAT_WINDOW: u32 = 64;
/// A closed pair is free at once for the client that had it (its TCP timestamps keep growing), for others after this.
const CLOSED_HOLD_S: u32 = 1;
/// An unanswered SYN holds its port this long (the sum of Linux's SYN retransmissions is 63 s at 6 retries; most give up before).
const NEW_TIMEOUT_S: u32 = 60;
/// RFC 5382 asks for at least 2 h 4 min; six hours.
const TCP_IDLE_S: u32 = 21_600;

/// True if another flow of `client` may take the entry's port.
#[inline(always)]
#[must_use]
pub fn is_reusable<F: Family>(entry: &SnatEntry<F>, client: &F::Addr, tcp: bool, config: &Config, now_s: u32) -> bool {
    let idle_s = now_s.wrapping_sub(entry.last_seen_s);
    match entry.state {
        FlowState::Closed => entry.client == *client || idle_s >= CLOSED_HOLD_S,
        _ if !tcp => idle_s > config.udp_timeout_s,
        FlowState::New => idle_s > NEW_TIMEOUT_S,
        _ => idle_s > TCP_IDLE_S,
    }
}

/// The client side of a translation to come.
pub(super) struct SnatRequest<F: Family> {
    pub client: F::Addr,
    pub client_port: u16,
    pub protocol: u8,
    pub flags: u8,
    pub node: F::Addr,
    /// The flow is older than this request: its pair may still be there, so look at the whole window.
    pub heal: bool,
}

/// Finds or makes the SNAT entry of `flow` and returns its port; 0 if there is none to be had. (A `Result` leaves bytes of the
/// return register unset, which the verifier refuses.)
// A function of its own: the verifier need not follow the caller once for each way out of the loop.
#[inline(never)]
pub(super) fn plan_snat<F: Family, T: Tables<F>>(tables: &T, request: &SnatRequest<F>, flow: &Flow<F>) -> u16 {
    let config = tables.config();
    let now_s = tables.now_s();
    let mut key =
        FlowKey::<F>::new(request.client, request.client_port, flow.backend, flow.backend_port, request.protocol);
    let range = u32::from(config.snat_last.wrapping_sub(config.snat_first)) + 1;
    let mut at = key.hash(config.seed);
    // Scaled to the range, each step is the next port. No branch: the verifier would count its outcomes.
    let step = u32::MAX / range + 1;
    key.src = flow.backend;
    key.src_port = flow.backend_port;
    key.dst = request.node;
    let mut entry = SnatEntry {
        client: request.client,
        client_port: request.client_port,
        state: FlowState::New,
        flags: request.flags,
        last_seen_s: now_s,
        check: 0,
    };
    let mut free = 0u16;
    for _ in 0..SNAT_WINDOW {
        let port = config.snat_first.wrapping_add(((u64::from(at) * u64::from(range)) >> 32) as u16);
        at = at.wrapping_add(step);
        key.dst_port = port;
        let slot = probe(tables, &key, request, config, now_s);
        match slot {
            Slot::Ours => return port,
            Slot::Busy => {}
            Slot::Empty | Slot::Over if request.heal => {
                if free == 0 {
                    free = port;
                }
            }
            Slot::Empty | Slot::Over => {
                entry.check = key.check();
                // Another CPU may take an empty port at this moment: then the next one is tried.
                let insert = if matches!(slot, Slot::Empty) { Insert::New } else { Insert::Any };
                if tables.put_snat(&key, &entry, insert).is_ok() {
                    return port;
                }
            }
        }
    }
    if free == 0 {
        return 0;
    }
    key.dst_port = free;
    entry.check = key.check();
    if tables.put_snat(&key, &entry, Insert::Any).is_ok() { free } else { 0 }
}

/// What stands at one port.
#[inline(always)]
fn probe<F: Family, T: Tables<F>>(
    tables: &T,
    key: &FlowKey<F>,
    request: &SnatRequest<F>,
    config: &Config,
    now_s: u32,
) -> Slot {
    let check = key.check();
    let slot = tables.snat(key, |there| {
        if there.check != check {
            return Slot::Over;
        }
        if there.client == request.client && there.client_port == request.client_port {
            there.state = FlowState::New;
            there.last_seen_s = now_s;
            there.flags = request.flags;
            return Slot::Ours;
        }
        let tcp = request.protocol == TCP;
        if is_reusable(there, &request.client, tcp, config, now_s) { Slot::Over } else { Slot::Busy }
    });
    slot.unwrap_or(Slot::Empty)
}

enum Slot {
    Empty,
    /// The flow that had it is over.
    Over,
    Busy,
    Ours,
}

/// The client behind one of our source ports. Notes that the reply was seen.
#[inline(always)]
pub(super) fn lookup_snat<F: Family, T: Tables<F>>(
    tables: &T,
    key: &FlowKey<F>,
    packet: &Packet<F>,
    now_s: u32,
) -> Option<SnatEntry<F>> {
    let check = key.check();
    tables
        .snat(key, |entry| {
            if entry.check != check {
                return None;
            }
            note(entry, packet, Side::Backend, now_s);
            Some(*entry)
        })
        .flatten()
}

/// Tells the SNAT entry of a flow of a SYN, FIN or RST from the client.
#[inline(always)]
pub(super) fn note_forward<F: Family, T: Tables<F>>(tables: &T, flow: &Flow<F>, packet: &Packet<F>, now_s: u32) {
    if packet.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) == 0 {
        return;
    }
    let key = FlowKey::<F>::new(flow.backend, flow.backend_port, flow.source, flow.source_port, packet.protocol);
    let check = key.check();
    tables.snat(&key, |entry| {
        if entry.check == check {
            if packet.is_syn() && matches!(entry.state, FlowState::Closed) {
                entry.state = FlowState::None;
            }
            note(entry, packet, Side::Client, now_s);
        }
    });
}

#[inline(always)]
fn note<F: Family>(entry: &mut SnatEntry<F>, packet: &Packet<F>, side: Side, now_s: u32) {
    if matches!(entry.state, FlowState::Closed) {
        return;
    }
    entry.state = next_state(entry.state, packet.tcp_flags, side);
    if entry.last_seen_s != now_s {
        entry.last_seen_s = now_s;
    }
}

/// True if the packet goes to a port that is Weir's alone.
#[inline(always)]
pub(super) fn is_our_port(config: &Config, port: u16) -> bool {
    port >= config.snat_first && port <= config.snat_last
}

/// True if the entry belongs to a pod that calls itself.
#[inline(always)]
pub(super) fn is_hairpin<F: Family>(entry: &SnatEntry<F>) -> bool {
    entry.flags & FLOW_HAIRPIN != 0
}

/// The node's address on a link, if it has one.
#[inline(always)]
pub(super) fn node_address<F: NodeAddress, T: Tables<F>>(tables: &T, ifindex: u32) -> Option<F::Addr> {
    let addr = F::of_iface(&tables.iface(ifindex)?);
    if addr == F::Addr::ZERO { None } else { Some(addr) }
}

/// Picks the node's address of the family out of an interface.
pub trait NodeAddress: Family {
    fn of_iface(iface: &crate::abi::Iface) -> Self::Addr;
}
impl NodeAddress for crate::net::V4 {
    #[inline(always)]
    fn of_iface(iface: &crate::abi::Iface) -> Self::Addr {
        iface.addr_v4
    }
}
impl NodeAddress for crate::net::V6 {
    #[inline(always)]
    fn of_iface(iface: &crate::abi::Iface) -> Self::Addr {
        iface.addr_v6
    }
}
