//! ICMP errors about packets of translated flows: an error travels like the reverse of the packet that it quotes, so it gets
//! the translation that this hook would give to a packet the other way. Nothing is chosen, noted or written here.
//!
//! Called as a step of its own by the kernel programs: other packets must not pay for it.

use super::conntrack::stack_port;
use super::decide::{TranslatedFamily, is_uplink, unknown_address};
use super::own::{Way, to_own_socket, way_of_own};
use super::snat::is_our_port;
use super::tables::Tables;
use super::verdict::{CHANGED_SRC, Env, Verdict, Work};
use crate::abi::{ADDR_NODE, Action, FLOW_HAIRPIN, FLOW_OWN, FlowKey, FlowKind, Reason};
use crate::net::{Family, Packet};

/// How the reverse packet is translated.
enum Reverse {
    /// No flow is known.
    Unknown,
    /// Its destination changes, or its source to the node's.
    Forward,
    /// Its source becomes the frontend.
    Reply,
}

/// Decides the ICMP error `work.packet`, which quotes `work.quote`.
#[inline(always)]
pub fn decide_error<F: TranslatedFamily, T: Tables<F>>(
    tables: &T,
    env: &Env,
    egress: bool,
    work: &mut Work<F>,
) -> Verdict {
    work.rewrite.start(&work.packet);
    work.quoted.start(&work.quote);
    let quote = &work.quote.tuple;
    work.key = FlowKey::new(quote.dst, quote.dst_port, quote.src, quote.src_port, work.quote.protocol);
    let reverse = if egress { reverse_at_egress(tables, env, work) } else { reverse_at_ingress(tables, work) };
    if matches!(reverse, Reverse::Unknown) {
        return pass_error(tables, egress, &work.packet);
    }
    let Work { packet, rewrite, quote, quoted, flow, .. } = work;
    let hairpin = flow.flags & FLOW_HAIRPIN != 0;
    if packet.tuple.dst == quote.tuple.src {
        rewrite.set_dst(quoted.tuple.src, 0);
    }
    // The address of a router stays, that of an end is translated as in its other packets.
    let source = egress && matches!(flow.kind, FlowKind::Source);
    if packet.tuple.src == quote.tuple.dst && (hairpin || source || matches!(reverse, Reverse::Reply)) {
        rewrite.set_src(quoted.tuple.dst, 0);
    }
    if !egress {
        rewrite.bounce = hairpin;
        if hairpin {
            return redirect(env.ifindex, flow.backend_id);
        }
        // Of the node's own packets alone an answer is translated here.
        if matches!(reverse, Reverse::Reply) && rewrite.changed & CHANGED_SRC != 0 {
            return to_own_socket(tables, env, &rewrite.tuple.src, Reason::IcmpError, flow.backend_id);
        }
        return pass(flow.backend_id);
    }
    if matches!(flow.kind, FlowKind::Forward) {
        return match way_of_own(tables, env, &rewrite.tuple.src, &rewrite.tuple.dst) {
            Way::Out(ifindex) => redirect(ifindex, flow.backend_id),
            Way::Here => pass(flow.backend_id),
            Way::None => Verdict::new(Action::Drop, Reason::NoRoute, flow.backend_id),
        };
    }
    let other_uplink = matches!(reverse, Reverse::Reply)
        && flow.ifindex != env.ifindex
        && is_uplink(tables, env.ifindex)
        && is_uplink(tables, flow.ifindex);
    if other_uplink { redirect(flow.ifindex, flow.backend_id) } else { pass(flow.backend_id) }
}

#[inline(always)]
fn pass(backend: u32) -> Verdict {
    Verdict::new(Action::Pass, Reason::IcmpError, backend)
}

#[inline(always)]
fn redirect(ifindex: u32, backend: u32) -> Verdict {
    Verdict::redirect(Reason::IcmpError, ifindex, backend)
}

/// An ICMP error that belongs to no flow: as any packet without ports.
#[inline(always)]
pub fn pass_error<F: TranslatedFamily, T: Tables<F>>(tables: &T, egress: bool, packet: &Packet<F>) -> Verdict {
    if !egress && tables.address(&packet.tuple.dst) == 0 {
        return unknown_address(tables, packet);
    }
    Verdict::pass(Reason::UnsupportedProtocol)
}

#[inline(always)]
fn reverse_at_ingress<F: TranslatedFamily, T: Tables<F>>(tables: &T, work: &mut Work<F>) -> Reverse {
    let node = work.key.dst;
    if is_our_port(tables.config(), work.key.dst_port) && tables.address(&node) & ADDR_NODE != 0 {
        let check = work.key.check();
        let entry = tables.snat(&work.key, |entry| if entry.check == check { Some(*entry) } else { None });
        if let Some(Some(entry)) = entry {
            work.quoted.set_src(entry.client, entry.client_port);
            work.flow.flags = 0;
            work.flow.backend_id = 0;
            if entry.flags & (FLOW_HAIRPIN | FLOW_OWN) == 0 {
                return Reverse::Forward;
            }
            work.key.dst = entry.client;
            work.key.dst_port = entry.client_port;
            return if matches!(lookup(tables, work), FlowKind::Reply) { reply(work) } else { Reverse::Unknown };
        }
    }
    match lookup(tables, work) {
        FlowKind::Forward if work.flow.flags & FLOW_OWN == 0 => forward(work),
        FlowKind::Reply if work.flow.flags & FLOW_OWN != 0 => reply(work),
        _ => Reverse::Unknown,
    }
}

#[inline(always)]
fn reverse_at_egress<F: Family, T: Tables<F>>(tables: &T, env: &Env, work: &mut Work<F>) -> Reverse {
    match lookup(tables, work) {
        FlowKind::Reply if work.flow.flags & FLOW_OWN == 0 || env.own => reply(work),
        FlowKind::Source if work.flow.source_port != 0 => {
            work.quoted.set_dst(work.flow.source, work.flow.source_port);
            Reverse::Forward
        }
        FlowKind::Forward if env.own && work.flow.flags & FLOW_OWN != 0 => forward(work),
        _ => Reverse::Unknown,
    }
}

/// Copies the flow of `work.key`.
#[inline(always)]
fn lookup<F: Family, T: Tables<F>>(tables: &T, work: &mut Work<F>) -> FlowKind {
    let Work { key, flow, .. } = work;
    let check = key.check();
    let kind = tables.flow(key, |there| {
        if there.check != check {
            return FlowKind::None;
        }
        *flow = *there;
        there.kind
    });
    kind.unwrap_or(FlowKind::None)
}

/// The reverse packet would be on its way to the frontend.
#[inline(always)]
fn forward<F: Family>(work: &mut Work<F>) -> Reverse {
    let Work { quote, quoted, flow, .. } = work;
    quoted.set_src(flow.backend, flow.backend_port);
    if flow.flags & FLOW_HAIRPIN != 0 {
        quoted.set_dst(flow.source, flow.source_port);
    } else {
        quoted.set_dst(quote.tuple.dst, stack_port(flow));
    }
    Reverse::Forward
}

/// The reverse packet would be an answer of the backend.
#[inline(always)]
fn reply<F: Family>(work: &mut Work<F>) -> Reverse {
    let Work { quoted, flow, .. } = work;
    quoted.set_dst(flow.frontend, flow.frontend_port);
    quoted.set_src(quoted.tuple.src, flow.client_port);
    Reverse::Reply
}
