//! Source ports on the way to other nodes: choice, reuse, reversal.

use super::tables::{Insert, Step, Tables};
use crate::abi::{Config, FLOW_UNCONFIRMED, Flow, FlowKey, FlowState, SnatEntry};
use crate::net::{Address, Family, Packet, TCP_ACK, TCP_SYN, UDP};

use super::conntrack::{Side, is_answered, next_state};

/// Ports tried for one flow.
pub const SNAT_WINDOW: u32 = 64;
/// A closed pair is free at once for the client that had it (its TCP timestamps keep growing), for others after this.
const CLOSED_HOLD_S: u32 = 1;
/// A handshake that stands still holds its port this long, if others want it: a flood of SYNs must not hold all of them. Who takes
/// longer gets another port with the next SYN.
const HANDSHAKE_HOLD_S: u32 = 2;
/// The same for datagrams that nobody answered (net.netfilter.nf_conntrack_udp_timeout).
const UDP_UNANSWERED_S: u32 = 30;
/// RFC 5382 asks for at least 2 h 4 min; six hours.
const TCP_IDLE_S: u32 = 21_600;

/// True if another flow of `client` may take the entry's port.
#[inline(always)]
#[must_use]
pub fn is_reusable<F: Family>(entry: &SnatEntry<F>, client: &F::Addr, tcp: bool, config: &Config, now_s: u32) -> bool {
    let idle_s = now_s.wrapping_sub(entry.last_seen_s);
    match entry.state {
        FlowState::Closed => entry.client == *client || idle_s >= CLOSED_HOLD_S,
        _ if entry.flags & FLOW_UNCONFIRMED != 0 => idle_s > if tcp { HANDSHAKE_HOLD_S } else { UDP_UNANSWERED_S },
        _ if !tcp => idle_s > config.udp_timeout_s,
        _ => idle_s > TCP_IDLE_S,
    }
}

/// One search for a source port, from the client's side of a translation to come.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Search<F: Family> {
    pub(super) client: F::Addr,
    /// The SNAT entry's key, its destination port being the one looked at.
    pub(super) key: FlowKey<F>,
    now_s: u32,
    /// Scaled to the range, it gives the port; each step is some ports further.
    at: u32,
    step: u32,
    client_port: u16,
    /// The first port that could be taken.
    free: u16,
    /// The result; 0: none.
    port: u16,
    flags: u8,
    /// The flow is older than this search: its pair may still be there, so look at the whole window.
    heal: bool,
}

impl<F: Family> Search<F> {
    pub(super) const EMPTY: Self = Self {
        client: F::Addr::ZERO,
        key: FlowKey::EMPTY,
        now_s: 0,
        at: 0,
        step: 0,
        client_port: 0,
        free: 0,
        port: 0,
        flags: 0,
        heal: false,
    };
}

/// What `plan_snat` is asked for, beside the flow.
pub(super) struct SnatRequest<F: Family> {
    pub client_port: u16,
    pub node: F::Addr,
    pub flags: u8,
    pub heal: bool,
}

/// Finds or makes the SNAT entry of a flow of `packet` and returns its port; 0 if there is none to be had.
#[inline(always)]
pub(super) fn plan_snat<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    flow: &Flow<F>,
    request: SnatRequest<F>,
    search: &mut Search<F>,
) -> u16 {
    let config = tables.config();
    search.client = packet.tuple.src;
    search.client_port = request.client_port;
    search.key = FlowKey::new(search.client, request.client_port, flow.backend, flow.backend_port, packet.protocol);
    search.at = search.key.hash(config.seed);
    search.key.src = flow.backend;
    search.key.src_port = flow.backend_port;
    search.key.dst = request.node;
    search.step = stride(search.at, range(config));
    search.now_s = tables.now_s();
    search.flags = request.flags;
    search.heal = request.heal;
    search.free = 0;
    search.port = 0;
    tables.repeat(SNAT_WINDOW, search);
    if search.port == 0 && search.free != 0 {
        search.key.dst_port = search.free;
        search.take(tables, Insert::Any);
    }
    search.port
}

impl<F: Family, T: Tables<F>> Step<T> for Search<F> {
    /// Looks at the next port.
    #[inline(always)]
    fn step(&mut self, tables: &T) -> bool {
        let config = tables.config();
        let offset = (u64::from(self.at) * u64::from(range(config))) >> 32;
        self.at = self.at.wrapping_add(self.step);
        self.key.dst_port = config.snat_first.wrapping_add(offset as u16);
        let slot = probe(tables, self, config);
        match slot {
            Slot::Ours => {
                self.port = self.key.dst_port;
                true
            }
            Slot::Busy => false,
            Slot::Empty | Slot::Over if self.heal => {
                if self.free == 0 {
                    self.free = self.key.dst_port;
                }
                false
            }
            // Another CPU may take an empty port at this moment: then the next one is tried.
            Slot::Empty => self.take(tables, Insert::New),
            Slot::Over => self.take(tables, Insert::Any),
        }
    }
}

impl<F: Family> Search<F> {
    /// Writes the entry at the key's port.
    #[inline(always)]
    fn take<T: Tables<F>>(&mut self, tables: &T, insert: Insert) -> bool {
        let entry = SnatEntry {
            client: self.client,
            client_port: self.client_port,
            state: if self.heal { FlowState::Established } else { FlowState::New },
            flags: self.flags | FLOW_UNCONFIRMED,
            last_seen_s: self.now_s,
            check: self.key.check(),
        };
        let taken = tables.put_snat(&self.key, &entry, insert).is_ok();
        if taken {
            self.port = self.key.dst_port;
        }
        taken
    }
}

/// How far each step of a search goes. If all went to the next port, taken ports would grow together to runs longer than the
/// window: at 90 % fill one search in five failed. So each flow has a stride of its own, out of the bits of its hash that do not
/// choose the first port, and short enough that the window meets no port twice.
#[inline(always)]
fn stride(hash: u32, range: u32) -> u32 {
    let strides = range / SNAT_WINDOW;
    let ports = 1 + (((hash & 0xffff) * strides) >> 16);
    (u32::MAX / range + 1).wrapping_mul(ports)
}

/// How many source ports there are.
#[inline(always)]
pub(super) fn range(config: &Config) -> u32 {
    u32::from(config.snat_last.wrapping_sub(config.snat_first)) + 1
}

/// What stands at one port.
#[inline(always)]
fn probe<F: Family, T: Tables<F>>(tables: &T, search: &Search<F>, config: &Config) -> Slot {
    let check = search.key.check();
    let slot = tables.snat(&search.key, |there| {
        if there.check != check {
            return Slot::Over;
        }
        if there.client == search.client && there.client_port == search.client_port {
            there.last_seen_s = search.now_s;
            if !search.heal {
                there.state = FlowState::New;
                there.flags = search.flags | FLOW_UNCONFIRMED;
            }
            return Slot::Ours;
        }
        let tcp = search.key.protocol != UDP;
        if is_reusable(there, &search.client, tcp, config, search.now_s) { Slot::Over } else { Slot::Busy }
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
            note(entry, packet.tcp_flags, Side::Backend, now_s);
            Some(*entry)
        })
        .flatten()
}

/// Whose a source port is.
pub(super) struct SnatOwner<F: Family> {
    pub client: F::Addr,
    pub client_port: u16,
    pub flags: u8,
    /// The flow is confirmed: an entry that was evicted is made anew as it was.
    pub confirmed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// The port is another's.
    Lost,
    /// The backend was not heard yet.
    Unconfirmed,
    Confirmed,
}

/// Tells the SNAT entry of a packet from the client, and makes it anew if it was evicted. If the backend was heard before, the
/// entry is taken over into SNAT.
#[inline(always)]
pub(super) fn keep_snat<F: Family, T: Tables<F>>(
    tables: &T,
    key: &FlowKey<F>,
    owner: &SnatOwner<F>,
    tcp_flags: u8,
    now_s: u32,
) -> Kept {
    let check = key.check();
    let opens = tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
    let found = tables.snat(key, |entry| {
        if entry.check != check || entry.client != owner.client || entry.client_port != owner.client_port {
            return Found::Lost;
        }
        if opens && matches!(entry.state, FlowState::Closed) {
            entry.state = FlowState::None;
            entry.flags |= FLOW_UNCONFIRMED;
        }
        note(entry, tcp_flags, Side::Client, now_s);
        match entry.flags & FLOW_UNCONFIRMED {
            0 => Found::Confirmed,
            _ if is_answered(entry.state) && !opens => Found::Answered(entry.state),
            _ => Found::Unconfirmed,
        }
    });
    let before = if opens { FlowState::None } else { FlowState::Established };
    let (state, unconfirmed) = match found {
        Some(Found::Lost) => return Kept::Lost,
        Some(Found::Confirmed) => return Kept::Confirmed,
        Some(Found::Unconfirmed) => return Kept::Unconfirmed,
        Some(Found::Answered(state)) => (state, 0),
        None if owner.confirmed => (next_state(before, tcp_flags, Side::Client), 0),
        None => (next_state(before, tcp_flags, Side::Client), FLOW_UNCONFIRMED),
    };
    let entry = SnatEntry {
        client: owner.client,
        client_port: owner.client_port,
        state,
        flags: owner.flags | unconfirmed,
        last_seen_s: now_s,
        check,
    };
    if unconfirmed == 0 {
        tables.settle_snat(key, &entry);
        return Kept::Confirmed;
    }
    if tables.put_snat(key, &entry, Insert::New).is_ok() { Kept::Unconfirmed } else { Kept::Lost }
}

/// What [`keep_snat`] sees in the table.
enum Found {
    Lost,
    Unconfirmed,
    /// Unconfirmed until now.
    Answered(FlowState),
    Confirmed,
}

#[inline(always)]
fn note<F: Family>(entry: &mut SnatEntry<F>, tcp_flags: u8, side: Side, now_s: u32) {
    if matches!(entry.state, FlowState::Closed) {
        return;
    }
    entry.state = next_state(entry.state, tcp_flags, side);
    if entry.last_seen_s != now_s {
        entry.last_seen_s = now_s;
    }
}

/// True if the packet goes to a port that is Weir's alone.
#[inline(always)]
pub(super) fn is_our_port(config: &Config, port: u16) -> bool {
    port >= config.snat_first && port <= config.snat_last
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
