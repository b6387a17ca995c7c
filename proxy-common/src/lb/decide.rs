//! The decision for a packet at the two tc hooks.
//!
//! At ingress a packet to a frontend gets its endpoint, and a reply to one of our source ports its client; then it passes the
//! stack. At egress a packet to another node gets our source address, and a reply its frontend as source. So the stack and
//! its filters always see client and endpoint.

use super::conntrack::{Heal, Known, heal, lookup_conntrack, note_reply};
use super::new_flow::{forward, new_flow};
use super::snat::{
    NodeAddress, SnatRequest, is_hairpin, is_our_port, lookup_snat, node_address, note_forward, plan_snat,
};
use super::tables::Tables;
use super::verdict::{Env, Rewrite, Verdict};
use crate::abi::{ADDR_NODE, Action, FLOW_OWN, Flow, FlowKey, FlowKind, FlowState, IfaceRole, Reason, SnatEntry};
use crate::net::{Family, Fragment, Packet, ParseFamily};

/// A family that Weir translates.
pub trait TranslatedFamily: Family + ParseFamily + NodeAddress {}
impl<F: ParseFamily + NodeAddress> TranslatedFamily for F {}

/// A packet that comes into the node's network namespace.
#[inline(always)]
pub fn decide_ingress<F: TranslatedFamily, T: Tables<F>>(
    tables: &T,
    env: &Env,
    packet: &Packet<F>,
    rewrite: &mut Rewrite<F>,
) -> Verdict {
    rewrite.start(packet);
    let addr_flags = tables.address(&packet.tuple.dst);
    if addr_flags == 0 {
        return unknown_address(tables, packet);
    }
    if !packet.has_ports() {
        return Verdict::pass(without_ports(packet));
    }
    let now_s = tables.now_s();
    let key = FlowKey::of(packet);
    let ours = addr_flags & ADDR_NODE != 0 && is_our_port(tables.config(), packet.tuple.dst_port);
    if ours && let Some(entry) = lookup_snat(tables, &key, packet, now_s) {
        return snat_reply(tables, env, packet, &entry, now_s, rewrite);
    }
    match lookup_conntrack(tables, &key, packet, now_s) {
        Known::Forward(mut flow, due) => {
            let verdict = forward(tables, env, packet, &flow, Reason::Forward, rewrite);
            if due == Heal::Due {
                heal(tables, &key, &mut flow);
            }
            verdict
        }
        Known::OwnReply(flow) if flow.flags & FLOW_OWN != 0 => {
            note_reply(tables, &flow, packet.tuple.dst, packet, now_s);
            rewrite.set_src(flow.frontend, flow.frontend_port);
            rewrite.set_dst(packet.tuple.dst, flow.client_port);
            Verdict::new(Action::Pass, Reason::OwnReply, flow.backend_id)
        }
        _ if ours => Verdict::drop(Reason::SnatNoEntry),
        _ => new_flow(tables, env, packet, &key, addr_flags, rewrite),
    }
}

/// A packet that leaves the node's network namespace.
#[inline(always)]
pub fn decide_egress<F: TranslatedFamily, T: Tables<F>>(
    tables: &T,
    env: &Env,
    packet: &Packet<F>,
    rewrite: &mut Rewrite<F>,
) -> Verdict {
    rewrite.start(packet);
    if !packet.has_ports() {
        return Verdict::pass(without_ports(packet));
    }
    let key = FlowKey::of(packet);
    let check = key.check();
    let now_s = tables.now_s();
    if let Some(flow) = tables.flow(&key, |flow| *flow)
        && flow.check == check
    {
        match flow.kind {
            FlowKind::Reply if flow.flags & FLOW_OWN == 0 => {
                return reply(tables, env, packet, &flow, now_s, rewrite);
            }
            FlowKind::Source => return source(tables, env, packet, &key, &flow, now_s, rewrite),
            _ => {}
        }
    }
    if !env.own {
        return Verdict::pass(Reason::NoTranslation);
    }
    own_packet(tables, env, packet, &key, now_s, rewrite)
}

/// A destination that ADDRS does not know.
#[inline(always)]
fn unknown_address<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>) -> Verdict {
    if tables.in_service_cidr(&packet.tuple.dst) {
        return Verdict::drop(Reason::UnallocatedClusterIp);
    }
    Verdict::pass(Reason::NotOurs)
}

#[inline(always)]
fn without_ports<F: Family>(packet: &Packet<F>) -> Reason {
    if matches!(packet.fragment, Fragment::Later) { Reason::LaterFragment } else { Reason::UnsupportedProtocol }
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
) -> Verdict {
    rewrite.set_dst(entry.client, entry.client_port);
    if !is_hairpin(entry) {
        return Verdict::pass(Reason::SnatReply);
    }
    // A pod answers itself: the whole way back is here, it passes no egress.
    let key =
        FlowKey::<F>::new(packet.tuple.src, packet.tuple.src_port, entry.client, entry.client_port, packet.protocol);
    let check = key.check();
    match tables.flow(&key, |flow| *flow) {
        Some(flow) if flow.check == check && matches!(flow.kind, FlowKind::Reply) => {
            note_reply(tables, &flow, entry.client, packet, now_s);
            rewrite.set_src(flow.frontend, flow.frontend_port);
            rewrite.set_dst(entry.client, flow.client_port);
            rewrite.bounce = true;
            Verdict::redirect(Reason::HairpinReply, env.ifindex, flow.backend_id)
        }
        _ => Verdict::drop(Reason::SnatNoEntry),
    }
}

/// At egress: an answer on its way to the client.
#[inline(always)]
fn reply<F: TranslatedFamily, T: Tables<F>>(
    tables: &T,
    env: &Env,
    packet: &Packet<F>,
    flow: &Flow<F>,
    now_s: u32,
    rewrite: &mut Rewrite<F>,
) -> Verdict {
    note_reply(tables, flow, packet.tuple.dst, packet, now_s);
    rewrite.set_src(flow.frontend, flow.frontend_port);
    rewrite.set_dst(packet.tuple.dst, flow.client_port);
    if flow.ifindex != env.ifindex && is_uplink(tables, env.ifindex) && is_uplink(tables, flow.ifindex) {
        // Routing by the endpoint's address chose another link than the request came in by; the network drops it there.
        return Verdict::redirect(Reason::Reply, flow.ifindex, flow.backend_id);
    }
    Verdict::new(Action::Pass, Reason::Reply, flow.backend_id)
}

#[inline(always)]
fn is_uplink<F: Family, T: Tables<F>>(tables: &T, ifindex: u32) -> bool {
    matches!(tables.iface(ifindex), Some(iface) if matches!(iface.role, IfaceRole::Uplink))
}

/// At egress: a translated packet on its way to another node gets the node's address on this link.
#[inline(always)]
fn source<F: TranslatedFamily, T: Tables<F>>(
    tables: &T,
    env: &Env,
    packet: &Packet<F>,
    key: &FlowKey<F>,
    flow: &Flow<F>,
    now_s: u32,
    rewrite: &mut Rewrite<F>,
) -> Verdict {
    if flow.source_port != 0 {
        note_forward(tables, flow, packet, now_s);
        rewrite.set_src(flow.source, flow.source_port);
        return Verdict::new(Action::Pass, Reason::Snat, flow.backend_id);
    }
    let Some(node) = node_address::<F, T>(tables, env.ifindex) else {
        return Verdict::new(Action::Drop, Reason::NoNodeAddress, flow.backend_id);
    };
    let request = SnatRequest {
        client: packet.tuple.src,
        client_port: packet.tuple.src_port,
        backend: flow.backend,
        backend_port: flow.backend_port,
        node,
        protocol: packet.protocol,
        flags: 0,
        heal: !matches!(flow.state, FlowState::New),
    };
    let port = match plan_snat(tables, &request) {
        Ok(port) => port,
        Err(reason) => return Verdict::new(Action::Drop, reason, flow.backend_id),
    };
    tables.flow(key, |flow| {
        flow.source = node;
        flow.source_port = port;
    });
    rewrite.set_src(node, port);
    Verdict::new(Action::Pass, Reason::Snat, flow.backend_id)
}

/// At egress: a packet of this node's own sockets that the connect-time hooks did not translate.
#[inline(always)]
fn own_packet<F: TranslatedFamily, T: Tables<F>>(
    tables: &T,
    env: &Env,
    packet: &Packet<F>,
    key: &FlowKey<F>,
    now_s: u32,
    rewrite: &mut Rewrite<F>,
) -> Verdict {
    let addr_flags = tables.address(&packet.tuple.dst);
    if addr_flags == 0 {
        return match unknown_address(tables, packet) {
            Verdict { reason: Reason::NotOurs, .. } => Verdict::pass(Reason::NoTranslation),
            dropped => dropped,
        };
    }
    match lookup_conntrack(tables, key, packet, now_s) {
        Known::Forward(flow, due) => {
            if due == Heal::Due {
                let mut copy = flow;
                heal(tables, key, &mut copy);
            }
            forward(tables, env, packet, &flow, Reason::Forward, rewrite)
        }
        _ => new_flow(tables, env, packet, key, addr_flags, rewrite),
    }
}
