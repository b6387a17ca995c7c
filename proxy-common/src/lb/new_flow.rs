//! A packet to one of our addresses that belongs to no flow: find the frontend, choose an endpoint, remember the flow.

use super::connect::{service_of_socket, stale_socket};
use super::conntrack::{Side, next_state, reply_key, stack_port};
use super::decide::TranslatedFamily;
use super::own::{forward_own, is_translated};
use super::schedule::CONSISTENT_SEED;
use super::select::{Client, NotChosen, select_backend};
use super::snat::{SnatRequest, node_address, plan_snat, range as snat_range};
use super::tables::{Insert, Tables};
use super::verdict::{Env, Rewrite, Verdict, Work};
use crate::abi::{
    ADDR_CLUSTER_IP, ADDR_EXTERNAL, ADDR_NODE, ADDR_NODEPORT, ADDR_VANISHED, Action, Algorithm, BACKEND_DIRECT,
    CONFIG_MASQUERADE_ALL, EmptySet, FLOW_COUNTED, FLOW_HAIRPIN, FLOW_OWN, FLOW_SNAT, FLOW_UNCONFIRMED, Flow, FlowKey,
    FlowKind, FlowState, IfaceRole, Reason, SERVICE_SOURCE_RANGES, Service, ServiceKey,
};
use crate::net::{Address, Family, Packet, TCP, TCP_RST, TCP_SYN, UDP};

/// Other source ports tried when another flow of the client has the tuple towards the same backend.
const REMAP_TRIES: u32 = 8;

/// Exact address first, then NodePort .
#[inline(always)]
pub(super) fn lookup_service<F: Family, T: Tables<F>>(
    tables: &T,
    addr: &F::Addr,
    port: u16,
    protocol: u8,
    addr_flags: u32,
) -> Option<Service> {
    let mut key = ServiceKey { addr: *addr, port, protocol, zero: 0 };
    if let Some(service) = tables.service(&key) {
        return Some(service);
    }
    if addr_flags & ADDR_NODEPORT == 0 {
        return None;
    }
    key.addr = F::Addr::ZERO;
    tables.service(&key)
}

/// Decides a packet without an entry. `addr_flags` is what ADDRS says of its destination.
#[inline(always)]
pub(super) fn new_flow<F: TranslatedFamily, T: Tables<F>>(
    tables: &T,
    env: &Env,
    work: &mut Work<F>,
    addr_flags: u32,
) -> Verdict {
    let Work { packet, key, flow, other, steered, client, chosen, .. } = work;
    if is_unknown_for_now(tables, packet, addr_flags) {
        return Verdict::drop(Reason::Migrating);
    }
    let goes_on = packet.is_of_connection() && !packet.is_syn();
    if goes_on && !may_be_adopted(packet, addr_flags) {
        return Verdict::pass(Reason::NoFlow);
    }
    // At a NodePort the packet may be an answer to a socket of this node, which happens to have that port.
    let addr_flags = if goes_on { addr_flags & !ADDR_NODEPORT } else { addr_flags };
    let tuple = &packet.tuple;
    *steered = addr_flags & ADDR_VANISHED != 0 && stale_socket(tables, packet, other);
    let service = if *steered {
        service_of_socket(tables, other)
    } else {
        lookup_service(tables, &tuple.dst, tuple.dst_port, packet.protocol, addr_flags)
    };
    if goes_on && !matches!(&service, Some(service) if service.algorithm.is_consistent()) {
        return Verdict::pass(Reason::NoFlow);
    }
    let Some(service) = service else {
        return if *steered {
            refuse(packet, Reason::NoEndpoints)
        } else if addr_flags & ADDR_CLUSTER_IP != 0 {
            refuse(packet, Reason::UnknownClusterIpPort)
        } else {
            Verdict::pass(Reason::UnknownPort)
        };
    };
    if addr_flags & ADDR_NODE != 0 {
        if env.own && is_translated(tables, packet, other) {
            return Verdict::pass(Reason::NoTranslation);
        }
        if !env.own && packet.protocol == UDP && tables.has_connected_udp(tuple) {
            return Verdict::pass(Reason::OwnSocket);
        }
    }
    if service.flags & SERVICE_SOURCE_RANGES != 0 && !tables.source_allowed(service.id, &tuple.src) {
        return Verdict::drop(Reason::SourceNotAllowed);
    }
    // A question changes nothing: no affinity, and no turn of a round robin.
    let service = if env.probe { Service { affinity_s: 0, algorithm: Algorithm::Random, ..service } } else { service };
    let internal = env.own || is_pod_link(tables, env.ifindex);
    let seed = match service.algorithm {
        Algorithm::MaglevTuple => CONSISTENT_SEED,
        _ => tables.config().seed,
    };
    *client = Client::by_address::<F>(internal, key.hash(seed), &tuple.src);
    match select_backend(tables, &service, client, chosen) {
        Ok(()) => {}
        Err(_) if goes_on => return Verdict::pass(Reason::NoFlow),
        Err(NotChosen::Empty(EmptySet::Refuse)) => return refuse(packet, Reason::NoEndpoints),
        Err(NotChosen::Empty(EmptySet::Drop)) => return Verdict::drop(Reason::NoLocalEndpoints),
        Err(NotChosen::Stale) => return Verdict::drop(Reason::StaleRing),
    }
    let backend = &chosen.backend;
    if env.probe {
        work.rewrite.set_dst(backend.addr, backend.port);
        return Verdict::new(Action::Pass, Reason::Probe, chosen.id);
    }
    let counted = matches!(service.algorithm, Algorithm::LeastConnections);
    let mut flags = if counted { FLOW_COUNTED } else { 0 };
    if env.own {
        flags |= FLOW_OWN;
        if backend.flags & BACKEND_DIRECT == 0 && leaves_by_other_address(tables, &tuple.src, &backend.addr) {
            flags |= FLOW_SNAT;
        }
    } else if backend.addr == tuple.src {
        flags |= FLOW_HAIRPIN;
    } else if backend.flags & BACKEND_DIRECT == 0 && !internal || tables.config().has(CONFIG_MASQUERADE_ALL) {
        flags |= FLOW_SNAT;
    }
    let now_s = tables.now_s();
    *flow = Flow {
        frontend: tuple.dst,
        frontend_port: tuple.dst_port,
        backend: backend.addr,
        backend_port: backend.port,
        client_port: tuple.src_port,
        backend_id: chosen.id,
        generation: backend.generation,
        service: service.id,
        ifindex: if env.own { 0 } else { env.ifindex },
        last_seen_s: now_s,
        healed_s: now_s,
        state: if goes_on {
            next_state(FlowState::Established, packet.tcp_flags, Side::Client)
        } else {
            FlowState::New
        },
        flags: flags | FLOW_UNCONFIRMED,
        ..Flow::EMPTY
    };
    match remember(tables, env, work) {
        Ok(()) => {}
        Err(reason) => return Verdict::new(Action::Drop, reason, work.chosen.id),
    }
    let Work { packet, rewrite, flow, steered, .. } = work;
    if flow.flags & FLOW_COUNTED != 0 {
        tables.add_load(flow.backend_id, 1);
    }
    let reason = match flow.state {
        _ if *steered => Reason::Resteered,
        FlowState::New => Reason::NewFlow,
        _ => Reason::Adopted,
    };
    translate(flow, rewrite);
    forward(tables, env, packet, flow, reason, rewrite)
}

/// True if a packet in mid-connection may belong to a Service whose connections go on at any node: its entry was evicted here, or its
/// other packets went by another node. A SYN+ACK is nobody's first word, and a RST ends what is not there.
#[inline(always)]
fn may_be_adopted<F: Family>(packet: &Packet<F>, addr_flags: u32) -> bool {
    packet.protocol == TCP
        && packet.tcp_flags & (TCP_SYN | TCP_RST) == 0
        && addr_flags & (ADDR_CLUSTER_IP | ADDR_EXTERNAL) != 0
}

/// True while the tables move to another layout, for packets to a Service: the flow may be in tables that are not read here. What
/// the packet opens would be known to some of the programs only. A repetition finds out; it comes by itself.
// A function of its own, for the sake of the stack. The Service is looked up once more, but only then.
#[inline(never)]
fn is_unknown_for_now<F: TranslatedFamily, T: Tables<F>>(tables: &T, packet: &Packet<F>, addr_flags: u32) -> bool {
    let to = &packet.tuple;
    tables.is_migrating(tables.now_s())
        && lookup_service(tables, &to.dst, to.dst_port, packet.protocol, addr_flags).is_some()
}

/// An ICMP error, unless the packet has a source that must not get one.
#[inline(always)]
fn refuse<F: Family>(packet: &Packet<F>, reason: Reason) -> Verdict {
    if packet.tuple.src.is_answerable() { Verdict::refuse(reason) } else { Verdict::drop(Reason::NotAnswerable) }
}

/// True if the interface leads to pods of this node.
#[inline(always)]
pub(super) fn is_pod_link<F: Family, T: Tables<F>>(tables: &T, ifindex: u32) -> bool {
    matches!(tables.iface(ifindex), Some(iface) if matches!(iface.role, IfaceRole::Pod))
}

/// True if a packet of the node's own goes to an endpoint by a link where the node has another address than the socket's,
/// which routing to the frontend had chosen. The answer would not come back by that link: an overlay carries the answers to
/// its own addresses only.
#[inline(always)]
fn leaves_by_other_address<F: TranslatedFamily, T: Tables<F>>(tables: &T, src: &F::Addr, backend: &F::Addr) -> bool {
    let link = tables.route(src, backend);
    link.and_then(|link| node_address::<F, T>(tables, link)).is_some_and(|node| node != *src)
}

/// Writes the entries of a new flow, the reply's first: no packet must go out whose answer would not be known.
#[inline(always)]
fn remember<F: TranslatedFamily, T: Tables<F>>(tables: &T, env: &Env, work: &mut Work<F>) -> Result<(), Reason> {
    put_reply(tables, work)?;
    let Work { packet, key, flow, other, search, .. } = work;
    let port = if flow.source_port != 0 { flow.source_port } else { flow.client_port };
    if flow.flags & FLOW_HAIRPIN != 0 {
        let node = node_address::<F, T>(tables, env.ifindex).ok_or(Reason::NoNodeAddress)?;
        let request = SnatRequest { client_port: port, node, flags: FLOW_HAIRPIN, heal: false };
        flow.source_port = plan_snat(tables, packet, flow, request, search);
        if flow.source_port == 0 {
            return Err(Reason::SnatPortsBusy);
        }
        flow.source = node;
        flow.client_port = port;
    } else if flow.flags & FLOW_SNAT != 0 {
        *other = FlowKey::new(packet.tuple.src, port, flow.backend, flow.backend_port, packet.protocol);
        let kept = flow.source_port;
        flow.kind = FlowKind::Source;
        flow.check = other.check();
        // The address is that of the link it will leave by; chosen there.
        flow.source_port = 0;
        tables.put_flow(other, flow, Insert::Any).map_err(|_| Reason::TableFull)?;
        flow.source_port = kept;
    }
    flow.kind = FlowKind::Forward;
    flow.check = key.check();
    tables.put_flow(key, flow, Insert::Any).map_err(|_| Reason::TableFull)
}

/// Writes the reply's entry. If another flow has the tuple (one client port, two frontends that share a backend), the client
/// gets another source port from the range that is ours alone.
// A function of its own: the verifier need not follow the caller once for each way out of the loop, and its stack is free
// again for what comes after.
#[inline(never)]
fn put_reply<F: Family, T: Tables<F>>(tables: &T, work: &mut Work<F>) -> Result<(), Reason> {
    let Work { packet, flow, other: reply, search, .. } = work;
    let rival = &mut search.key;
    *reply = reply_key(flow, packet.tuple.src, packet.tuple.src_port, packet.protocol);
    let config = tables.config();
    let first = reply.hash(config.seed);
    flow.kind = FlowKind::Reply;
    let mut i = 0;
    while i <= REMAP_TRIES {
        flow.check = reply.check();
        if tables.put_flow(reply, flow, Insert::New).is_ok() {
            return Ok(());
        }
        if may_replace(tables, reply, packet, flow, rival) {
            return tables.put_flow(reply, flow, Insert::Any).map_err(|_| Reason::TableFull);
        }
        let at = first.wrapping_add(i.wrapping_mul(0x9e37_79b9));
        let offset = (u64::from(at) * u64::from(snat_range(config))) >> 32;
        let port = config.snat_first.wrapping_add(offset as u16);
        reply.dst_port = port;
        flow.source_port = port;
        i += 1;
    }
    Err(Reason::TupleBusy)
}

/// True if the reply entry in the way is this flow's own, a stale one, or belongs to a flow that is over.
#[inline(always)]
fn may_replace<F: Family, T: Tables<F>>(
    tables: &T,
    key: &FlowKey<F>,
    packet: &Packet<F>,
    flow: &Flow<F>,
    rival: &mut FlowKey<F>,
) -> bool {
    let check = key.check();
    let found = tables.flow(key, |there| {
        let own = there.frontend == flow.frontend
            && there.frontend_port == flow.frontend_port
            && there.client_port == flow.client_port;
        if own || there.check != check || !matches!(there.kind, FlowKind::Reply) {
            return false;
        }
        let (frontend, port) = (there.frontend, there.frontend_port);
        *rival = FlowKey::new(packet.tuple.src, there.client_port, frontend, port, packet.protocol);
        true
    });
    if found != Some(true) {
        return true;
    }
    let check = rival.check();
    let now_s = tables.now_s();
    let udp_timeout_s = tables.config().udp_timeout_s;
    let alive = tables.flow(rival, |forward| {
        forward.check == check
            && forward.backend == flow.backend
            && forward.backend_port == flow.backend_port
            && !matches!(forward.state, FlowState::Closed)
            && (packet.is_of_connection() || now_s.wrapping_sub(forward.last_seen_s) <= udp_timeout_s)
    });
    alive != Some(true)
}

/// The translation of a packet of a known flow on its way from the client.
#[inline(always)]
pub(super) fn translate<F: Family>(flow: &Flow<F>, rewrite: &mut Rewrite<F>) {
    rewrite.set_dst(flow.backend, flow.backend_port);
    if flow.flags & FLOW_HAIRPIN != 0 {
        rewrite.set_src(flow.source, flow.source_port);
        rewrite.bounce = true;
    } else {
        rewrite.set_src_port(stack_port(flow));
    }
}

/// Where it goes then.
#[inline(always)]
pub(super) fn forward<F: TranslatedFamily, T: Tables<F>>(
    tables: &T,
    env: &Env,
    packet: &Packet<F>,
    flow: &Flow<F>,
    reason: Reason,
    rewrite: &mut Rewrite<F>,
) -> Verdict {
    if flow.flags & FLOW_HAIRPIN != 0 {
        return Verdict::redirect(Reason::HairpinForward, env.ifindex, flow.backend_id);
    }
    if flow.flags & FLOW_OWN != 0 {
        return forward_own(tables, env, packet, flow, rewrite);
    }
    Verdict::new(Action::Pass, reason, flow.backend_id)
}
