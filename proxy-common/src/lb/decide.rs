//! The decision for a packet at the two tc hooks.
//!
//! At ingress a packet to a frontend gets its endpoint, and a reply to one of our source ports its client; then it passes the
//! stack. At egress a packet to another node gets our source address, and a reply its frontend as source. So the stack and
//! its filters always see client and endpoint.

use super::conntrack::{HEAL_INTERVAL_S, Known, forget_half, heal, is_foreign_syn, lookup_conntrack, note_reply};
use super::fragments::{follow_fragment, remember_fragment};
use super::new_flow::{forward, new_flow, translate};
use super::own::{own_reply, to_own_socket};
use super::snat::{
    Kept, NodeAddress, SnatOwner, SnatRequest, is_our_port, keep_snat, lookup_snat, node_address, plan_snat,
};
use super::tables::Tables;
use super::verdict::{Env, Rewrite, Verdict, Work};
use crate::abi::{
    ADDR_NODE, Action, FLOW_HAIRPIN, FLOW_OWN, FLOW_UNCONFIRMED, Flow, FlowKey, FlowKind, FlowState, IfaceRole, Reason,
    SnatEntry,
};
use crate::net::{Family, Fragment, Packet, ParseFamily, TCP_FIN, TCP_RST, TCP_SYN};

/// A family that Weir translates.
pub trait TranslatedFamily: Family + ParseFamily + NodeAddress {}
impl<F: ParseFamily + NodeAddress> TranslatedFamily for F {}

/// Any packet at any hook, all steps in one: for executors without a kernel. The kernel programs call the steps apart.
pub fn decide<F: TranslatedFamily, T: Tables<F>>(tables: &T, env: &Env, egress: bool, work: &mut Work<F>) -> Verdict {
    if matches!(work.packet.fragment, Fragment::Later) {
        return follow_fragment(tables, egress, work);
    }
    let mut verdict = if egress { decide_egress(tables, env, work) } else { decide_ingress(tables, env, work) };
    if matches!(work.packet.fragment, Fragment::First) {
        remember_fragment(tables, egress, work, &mut verdict);
    }
    verdict
}

/// A packet that comes into the node's network namespace, whole or a first fragment.
#[inline(always)]
pub fn decide_ingress<F: TranslatedFamily, T: Tables<F>>(tables: &T, env: &Env, work: &mut Work<F>) -> Verdict {
    let Work { packet, rewrite, key, flow, .. } = work;
    rewrite.start(packet);
    let addr_flags = tables.address(&packet.tuple.dst);
    if addr_flags == 0 && !tables.in_service_cidr(&packet.tuple.dst) {
        return Verdict::pass(Reason::NotOurs);
    }
    if !packet.has_ports() {
        let unallocated = addr_flags == 0;
        return if unallocated { UNALLOCATED } else { Verdict::pass(Reason::UnsupportedProtocol) };
    }
    let now_s = tables.now_s();
    *key = FlowKey::of(packet);
    let ours = addr_flags & ADDR_NODE != 0 && is_our_port(tables.config(), packet.tuple.dst_port);
    if ours && let Some(entry) = lookup_snat(tables, key, packet, now_s) {
        return snat_reply(tables, env, packet, &entry, now_s, rewrite, flow);
    }
    let known = lookup_conntrack(tables, key, packet, now_s, flow);
    match known {
        Known::Forward | Known::ForwardHeal => known_forward(tables, env, work, known),
        Known::OwnReply => own_reply(tables, env, work, now_s),
        // No Service has the address any more; connections from before that are in CONNTRACK and live on.
        Known::No if addr_flags == 0 => UNALLOCATED,
        Known::No if ours => Verdict::drop(Reason::SnatNoEntry),
        Known::No => new_flow(tables, env, work, addr_flags),
    }
}

/// A packet that leaves the node's network namespace, whole or a first fragment.
#[inline(always)]
pub fn decide_egress<F: TranslatedFamily, T: Tables<F>>(tables: &T, env: &Env, work: &mut Work<F>) -> Verdict {
    let Work { packet, rewrite, key, flow, .. } = work;
    rewrite.start(packet);
    // What passes lo is mostly for addresses that neither a Service nor a client of one on this node can have.
    if env.is_loopback() && tables.address(&packet.tuple.dst) == 0 {
        return Verdict::pass(Reason::NotOurs);
    }
    if !packet.has_ports() {
        return Verdict::pass(Reason::UnsupportedProtocol);
    }
    *key = FlowKey::of(packet);
    let check = key.check();
    let now_s = tables.now_s();
    let kind = tables.flow(key, |there| {
        if there.check != check {
            return FlowKind::None;
        }
        *flow = *there;
        there.kind
    });
    match kind {
        // The endpoint and the client are both sockets of the node, and this is lo: all that differs is the name.
        Some(FlowKind::Reply) if flow.flags & FLOW_OWN == 0 || env.own => reply(tables, env, work, now_s),
        Some(FlowKind::Source) => source(tables, env, work, now_s),
        _ if env.own => own_packet(tables, env, work, now_s),
        _ => untranslated(tables, packet, now_s),
    }
}

/// A packet of a known flow on its way from the client.
#[inline(always)]
fn known_forward<F: TranslatedFamily, T: Tables<F>>(
    tables: &T,
    env: &Env,
    work: &mut Work<F>,
    known: Known,
) -> Verdict {
    let Work { packet, rewrite, key, flow, .. } = work;
    translate(flow, rewrite);
    // Before the verdict: the verifier would follow it once for each.
    if known == Known::ForwardHeal && !heal(tables, key, flow, packet) {
        forget_half(tables, key);
        return Verdict::drop(Reason::SnatNoEntry);
    }
    forward(tables, env, packet, flow, Reason::Forward, rewrite)
}

/// In the Service range, but no Service has it.
pub(super) const UNALLOCATED: Verdict = Verdict::drop(Reason::UnallocatedClusterIp);

/// A destination that ADDRS does not know.
#[inline(always)]
pub(super) fn unknown_address<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>) -> Verdict {
    if tables.in_service_cidr(&packet.tuple.dst) {
        return UNALLOCATED;
    }
    Verdict::pass(Reason::NotOurs)
}

/// At ingress: an answer from another node to one of our source ports.
#[inline(always)]
fn snat_reply<F: TranslatedFamily, T: Tables<F>>(
    tables: &T,
    env: &Env,
    packet: &Packet<F>,
    entry: &SnatEntry<F>,
    now_s: u32,
    rewrite: &mut Rewrite<F>,
    flow: &mut Flow<F>,
) -> Verdict {
    rewrite.set_dst(entry.client, entry.client_port);
    if entry.flags & (FLOW_HAIRPIN | FLOW_OWN) == 0 {
        return Verdict::pass(Reason::SnatReply);
    }
    // A pod answers itself, or the client is a socket of this node: the whole way back is here, it passes no egress.
    let key =
        FlowKey::<F>::new(packet.tuple.src, packet.tuple.src_port, entry.client, entry.client_port, packet.protocol);
    let check = key.check();
    let found = tables.flow(&key, |there| {
        *flow = *there;
        there.check == check && matches!(there.kind, FlowKind::Reply)
    });
    match found {
        Some(true) => {
            let _ = note_reply(tables, flow, &key, packet, now_s);
            rewrite.set_src(flow.frontend, flow.frontend_port);
            rewrite.set_dst(entry.client, flow.client_port);
            if entry.flags & FLOW_HAIRPIN == 0 {
                return to_own_socket(tables, env, &flow.frontend, Reason::OwnReply, flow.backend_id);
            }
            rewrite.bounce = true;
            Verdict::redirect(Reason::HairpinReply, env.ifindex, flow.backend_id)
        }
        _ => Verdict::drop(Reason::SnatNoEntry),
    }
}

/// At egress: an answer on its way to the client.
#[inline(always)]
fn reply<F: TranslatedFamily, T: Tables<F>>(tables: &T, env: &Env, work: &mut Work<F>, now_s: u32) -> Verdict {
    let Work { packet, rewrite, key, flow, .. } = work;
    if !note_reply(tables, flow, key, packet, now_s) {
        forget_half(tables, key);
        return Verdict::pass(Reason::NoTranslation);
    }
    rewrite.set_src(flow.frontend, flow.frontend_port);
    rewrite.set_dst(packet.tuple.dst, flow.client_port);
    if flow.ifindex != env.ifindex && is_uplink(tables, env.ifindex) && is_uplink(tables, flow.ifindex) {
        // Routing by the endpoint's address chose another link than the request came in by; the network drops it there.
        return Verdict::redirect(Reason::Reply, flow.ifindex, flow.backend_id);
    }
    let reason = if flow.flags & FLOW_OWN == 0 { Reason::Reply } else { Reason::OwnReply };
    Verdict::new(Action::Pass, reason, flow.backend_id)
}

#[inline(always)]
pub(super) fn is_uplink<F: Family, T: Tables<F>>(tables: &T, ifindex: u32) -> bool {
    matches!(tables.iface(ifindex), Some(iface) if matches!(iface.role, IfaceRole::Uplink))
}

/// At egress: a translated packet on its way to another node gets the node's address on this link.
#[inline(always)]
fn source<F: TranslatedFamily, T: Tables<F>>(tables: &T, env: &Env, work: &mut Work<F>, now_s: u32) -> Verdict {
    let Work { packet, rewrite, key, flow, search, .. } = work;
    if is_foreign_syn(tables, flow, packet, now_s) {
        forget_half(tables, key);
        return untranslated(tables, packet, now_s);
    }
    if flow.source_port != 0 && still_ours(tables, packet, key, flow, now_s) {
        rewrite.set_src(flow.source, flow.source_port);
        return Verdict::new(Action::Pass, Reason::Snat, flow.backend_id);
    }
    let Some(node) = node_address::<F, T>(tables, env.ifindex) else {
        return Verdict::new(Action::Drop, Reason::NoNodeAddress, flow.backend_id);
    };
    let heal = (flow.source_port != 0 || !matches!(flow.state, FlowState::New)) && !packet.is_syn();
    let flags = flow.flags & FLOW_OWN;
    let request = SnatRequest { client_port: packet.tuple.src_port, node, flags, heal };
    let port = plan_snat(tables, packet, flow, request, search);
    if port == 0 {
        return Verdict::new(Action::Drop, Reason::SnatPortsBusy, flow.backend_id);
    }
    tables.flow(key, |flow| {
        flow.source = node;
        flow.source_port = port;
    });
    rewrite.set_src(node, port);
    Verdict::new(Action::Pass, Reason::Snat, flow.backend_id)
}

/// Looks after the SNAT entry of a flow, at most once a second and when the connection changes its state. False if another flow
/// has the port by now.
#[inline(always)]
fn still_ours<F: TranslatedFamily, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    key: &FlowKey<F>,
    flow: &mut Flow<F>,
    now_s: u32,
) -> bool {
    let unconfirmed = flow.flags & FLOW_UNCONFIRMED != 0;
    let due = now_s.wrapping_sub(flow.healed_s) >= HEAL_INTERVAL_S;
    if !due && !unconfirmed && packet.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) == 0 {
        return true;
    }
    if due {
        flow.healed_s = now_s;
        tables.flow(key, |there| there.healed_s = now_s);
    }
    let snat = FlowKey::<F>::new(flow.backend, flow.backend_port, flow.source, flow.source_port, packet.protocol);
    let owner = SnatOwner {
        client: packet.tuple.src,
        client_port: packet.tuple.src_port,
        flags: flow.flags & FLOW_OWN,
        confirmed: !unconfirmed,
    };
    let kept = keep_snat(tables, &snat, &owner, packet.tcp_flags, now_s);
    if unconfirmed && kept == Kept::Confirmed {
        flow.flags &= !FLOW_UNCONFIRMED;
        tables.settle_flow(key, flow);
    }
    kept != Kept::Lost
}

/// At egress: a packet that belongs to no flow. If a masquerade rule or a socket of the node chose one of our source ports, the
/// port is theirs as long as they use it: the answer must not be taken for a stray one.
#[inline(always)]
fn untranslated<F: TranslatedFamily, T: Tables<F>>(tables: &T, packet: &Packet<F>, now_s: u32) -> Verdict {
    let t = &packet.tuple;
    if is_our_port(tables.config(), t.src_port) && tables.address(&t.src) & ADDR_NODE != 0 {
        let snat = FlowKey::<F>::new(t.dst, t.dst_port, t.src, t.src_port, packet.protocol);
        let owner = SnatOwner { client: t.src, client_port: t.src_port, flags: 0, confirmed: false };
        let _ = keep_snat(tables, &snat, &owner, packet.tcp_flags, now_s);
    }
    Verdict::pass(Reason::NoTranslation)
}

/// At egress: a packet of this node's own sockets that the connect-time hooks did not translate.
#[inline(always)]
fn own_packet<F: TranslatedFamily, T: Tables<F>>(tables: &T, env: &Env, work: &mut Work<F>, now_s: u32) -> Verdict {
    let addr_flags = tables.address(&work.packet.tuple.dst);
    if addr_flags == 0 {
        return match unknown_address(tables, &work.packet) {
            Verdict { reason: Reason::NotOurs, .. } => untranslated(tables, &work.packet, now_s),
            dropped => dropped,
        };
    }
    if tables.address(&work.packet.tuple.src) == 0 {
        // A pod behind macvlan or ipvlan, or a transparent proxy: the answer goes to an address that ingress takes no notice of.
        return Verdict::pass(Reason::NoTranslation);
    }
    match lookup_conntrack(tables, &work.key, &work.packet, now_s, &mut work.flow) {
        Known::No | Known::OwnReply => new_flow(tables, env, work, addr_flags),
        known => known_forward(tables, env, work, known),
    }
}
