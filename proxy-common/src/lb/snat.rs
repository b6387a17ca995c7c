//! Source ports on the way to other nodes: choice, reuse, reversal.

use super::tables::{Insert, Tables};
use crate::abi::{Config, FLOW_HAIRPIN, Flow, FlowKey, FlowState, Reason, SnatEntry};
use crate::net::{Address, Family, Packet, TCP_FIN, TCP_RST, TCP_SYN};

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
    pub backend: F::Addr,
    pub backend_port: u16,
    pub node: F::Addr,
    pub protocol: u8,
    pub flags: u8,
    /// The flow is older than this request: its pair may still be there, so look at the whole window.
    pub heal: bool,
}

/// Finds or makes the SNAT entry of a flow and returns its port.
#[inline(always)]
pub(super) fn plan_snat<F: Family, T: Tables<F>>(tables: &T, request: &SnatRequest<F>) -> Result<u16, Reason> {
    let config = tables.config();
    let now_s = tables.now_s();
    let range = u32::from(config.snat_last.wrapping_sub(config.snat_first)) + 1;
    let forward =
        FlowKey::<F>::new(request.client, request.client_port, request.backend, request.backend_port, request.protocol);
    let first = ((u64::from(forward.hash(config.seed)) * u64::from(range)) >> 32) as u32;
    let mut key = FlowKey::<F>::new(request.backend, request.backend_port, request.node, 0, request.protocol);
    let entry = SnatEntry {
        client: request.client,
        client_port: request.client_port,
        state: FlowState::New,
        flags: request.flags,
        last_seen_s: now_s,
        check: 0,
    };
    let tcp = request.protocol == crate::net::TCP;
    let mut free = 0u16;
    for i in 0..SNAT_WINDOW {
        let mut offset = first + i;
        if offset >= range {
            offset -= range;
        }
        if i >= range {
            break;
        }
        let port = config.snat_first.wrapping_add(offset as u16);
        key.dst_port = port;
        let check = key.check();
        let state = tables.snat(&key, |there| {
            if there.check != check {
                return Slot::Free;
            }
            if there.client == request.client && there.client_port == request.client_port {
                there.state = FlowState::New;
                there.last_seen_s = now_s;
                there.flags = request.flags;
                return Slot::Ours;
            }
            if is_reusable(there, &request.client, tcp, config, now_s) { Slot::Free } else { Slot::Busy }
        });
        match state {
            Some(Slot::Ours) => return Ok(port),
            Some(Slot::Busy) => {}
            Some(Slot::Free) | None if free == 0 => {
                let insert = if state.is_none() { Insert::New } else { Insert::Any };
                if request.heal {
                    free = port;
                } else if tables.put_snat(&key, &SnatEntry { check, ..entry }, insert).is_ok() {
                    return Ok(port);
                }
            }
            _ => {}
        }
    }
    if free == 0 {
        return Err(Reason::SnatPortsBusy);
    }
    key.dst_port = free;
    let check = key.check();
    match tables.put_snat(&key, &SnatEntry { check, ..entry }, Insert::Any) {
        Ok(()) => Ok(free),
        Err(_) => Err(Reason::TableFull),
    }
}

enum Slot {
    Free,
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
