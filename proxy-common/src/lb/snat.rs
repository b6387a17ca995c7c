//! Source ports on the way to other nodes: choice, reuse, reversal.

use super::tables::{Step, Tables};
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
    /// `at` of the first port that could be taken, if `seen_free`.
    free_at: u32,
    client_port: u16,
    /// The result; 0: none.
    port: u16,
    flags: u8,
    /// The flow is older than this search: its pair may still be there.
    heal: bool,
    /// Look at the whole window for the flow's own port before another is taken.
    look: bool,
    seen_free: bool,
}

impl<F: Family> Search<F> {
    pub(super) const EMPTY: Self = Self {
        client: F::Addr::ZERO,
        key: FlowKey::EMPTY,
        now_s: 0,
        at: 0,
        step: 0,
        free_at: 0,
        client_port: 0,
        port: 0,
        flags: 0,
        heal: false,
        look: false,
        seen_free: false,
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
    search.look = request.heal;
    search.seen_free = false;
    search.port = 0;
    tables.repeat(SNAT_WINDOW, search);
    if search.port == 0 && search.seen_free {
        search.look = false;
        search.at = search.free_at;
        tables.repeat(SNAT_WINDOW, search);
    }
    search.port
}

impl<F: Family, T: Tables<F>> Step<T> for Search<F> {
    /// Looks at the next port.
    #[inline(always)]
    fn step(&mut self, tables: &T) -> bool {
        let config = tables.config();
        let at = self.at;
        self.at = at.wrapping_add(self.step);
        self.key.dst_port = config.snat_first.wrapping_add(((u64::from(at) * u64::from(range(config))) >> 32) as u16);
        let ours = match probe(tables, self, config) {
            Slot::Ours => true,
            Slot::Busy => false,
            Slot::Free if self.look => {
                if !self.seen_free {
                    self.seen_free = true;
                    self.free_at = at;
                }
                false
            }
            // Another CPU may take an empty port at this moment: then the next one is tried.
            Slot::Free => tables.put_snat(&self.key, &self.entry()).is_ok(),
        };
        if ours {
            self.port = self.key.dst_port;
        }
        ours
    }
}

impl<F: Family> Search<F> {
    /// What is written at the key's port.
    #[inline(always)]
    fn entry(&self) -> SnatEntry<F> {
        SnatEntry {
            client: self.client,
            client_port: self.client_port,
            state: if self.heal { FlowState::Established } else { FlowState::New },
            flags: self.flags | FLOW_UNCONFIRMED,
            last_seen_s: self.now_s,
            check: self.key.check(),
        }
    }
}

/// How far each step of a search goes. If all went to the next port, taken ports would grow together to runs longer than the
/// window: at 90 % fill one search in five failed. So each flow has a stride of its own, out of the bits of its hash that do not
/// choose the first port, and short enough that the window meets no port twice.
#[inline(always)]
fn stride(hash: u32, range: u32) -> u32 {
    let strides = range / SNAT_WINDOW;
    let ports = 1 + (((hash & 0xffff) * strides) >> 16);
    (u32::MAX / range).wrapping_add(1).wrapping_mul(ports)
}

/// How many source ports there are.
#[inline(always)]
pub(super) fn range(config: &Config) -> u32 {
    u32::from(config.snat_last.wrapping_sub(config.snat_first)) + 1
}

/// What stands at one port. A port whose flow is over is taken over at once, unless the search only looks.
#[inline(always)]
fn probe<F: Family, T: Tables<F>>(tables: &T, search: &Search<F>, config: &Config) -> Slot {
    let check = search.key.check();
    let slot = tables.snat(&search.key, |there| {
        let seen = *there;
        if seen.check == check && seen.client == search.client && seen.client_port == search.client_port {
            there.last_seen_s = search.now_s;
            if !search.heal {
                there.state = FlowState::New;
                there.flags = search.flags | FLOW_UNCONFIRMED;
            }
            return Slot::Ours;
        }
        let tcp = search.key.protocol != UDP;
        if seen.check == check && !is_reusable(&seen, &search.client, tcp, config, search.now_s) {
            return Slot::Busy;
        }
        if search.look {
            return Slot::Free;
        }
        let entry = search.entry();
        if !tables.swap_owner(there, seen.word(), entry.word()) {
            return Slot::Busy;
        }
        *there = entry;
        Slot::Ours
    });
    slot.unwrap_or(Slot::Free)
}

enum Slot {
    /// Nobody's, or, to a search that only looks, one whose flow is over.
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
    if tables.put_snat(key, &entry).is_ok() { Kept::Unconfirmed } else { Kept::Lost }
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
