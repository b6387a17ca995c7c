//! The node's own packets that no connect hook translated: where they go once their destination is an endpoint, and how their
//! answers come back to the socket. Called by decide.rs, new_flow.rs and errors.rs.
//!
//! Where both ends are addresses of the node, both directions pass lo, whose egress hook translates them. A packet that comes
//! to lo finds its way by the route that it has from where it was sent: its source is not looked at, and its new destination
//! need not be the one that it was routed to.

use super::conntrack::{forget_half, note_reply};
use super::decide::TranslatedFamily;
use super::tables::Tables;
use super::verdict::{Env, Rewrite, Verdict, Work};
use crate::abi::{ADDR_NODE, Action, FLOW_OWN, Flow, FlowKey, FlowKind, IFACE_STRICT, IfaceRole, LOOPBACK, Reason};
use crate::net::{Family, Packet};

/// RFC 8200 section 5: every link takes so much.
const IPV6_MIN_MTU: u32 = 1280;

/// Where a packet of the node's own is sent.
#[derive(Clone, Copy)]
pub(super) enum Way {
    /// On as it is.
    Here,
    /// Redirected.
    Out(u32),
    None,
}

/// The way to an endpoint.
#[inline(always)]
pub(super) fn way_of_own<F: Family, T: Tables<F>>(tables: &T, env: &Env, src: &F::Addr, dst: &F::Addr) -> Way {
    if tables.address(dst) & ADDR_NODE != 0 {
        return if env.is_loopback() { Way::Here } else { Way::Out(LOOPBACK) };
    }
    match tables.route(src, dst) {
        Some(ifindex) => Way::Out(ifindex),
        None => Way::None,
    }
}

/// A packet of a known flow on its way to the endpoint.
#[inline(always)]
pub(super) fn forward_own<F: TranslatedFamily, T: Tables<F>>(
    tables: &T,
    env: &Env,
    packet: &Packet<F>,
    flow: &Flow<F>,
    rewrite: &mut Rewrite<F>,
) -> Verdict {
    match way_of_own(tables, env, &packet.tuple.src, &flow.backend) {
        Way::Here => Verdict::new(Action::Pass, Reason::OwnForward, flow.backend_id),
        Way::Out(ifindex) if is_too_long(tables, env, ifindex, rewrite) => {
            Verdict::new(Action::Reply, Reason::TooLong, flow.backend_id)
        }
        Way::Out(ifindex) => Verdict::redirect(Reason::OwnForward, ifindex, flow.backend_id),
        Way::None => Verdict::new(Action::Drop, Reason::NoRoute, flow.backend_id),
    }
}

/// The socket knows the MTU of the link that leads to the frontend, not of this one. A tunnel cuts what is too long for it.
#[inline(always)]
fn is_too_long<F: Family, T: Tables<F>>(tables: &T, env: &Env, ifindex: u32, rewrite: &mut Rewrite<F>) -> bool {
    let Some(link) = tables.iface(ifindex) else { return false };
    // Linux takes no notice of an MTU towards an own IPv6 address that is not below that of the address's interface.
    rewrite.mtu = if F::VERSION == 6 && env.is_loopback() { IPV6_MIN_MTU } else { link.mtu };
    !matches!(link.role, IfaceRole::Overlay) && tables.packet_len() > link.mtu
}

/// True for a packet that is on its way to an endpoint on this node already and comes to lo for that: the endpoint's port may
/// be a NodePort, too.
// A function of its own, for the sake of the caller's stack.
#[inline(never)]
pub(super) fn is_translated<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>, reply: &mut FlowKey<F>) -> bool {
    let t = &packet.tuple;
    *reply = FlowKey::new(t.dst, t.dst_port, t.src, t.src_port, packet.protocol);
    let check = reply.check();
    let found = tables.flow(reply, |there| {
        there.check == check && matches!(there.kind, FlowKind::Reply) && there.flags & FLOW_OWN != 0
    });
    found == Some(true)
}

/// An answer to a socket of the node.
#[inline(always)]
pub(super) fn own_reply<F: TranslatedFamily, T: Tables<F>>(
    tables: &T,
    env: &Env,
    work: &mut Work<F>,
    now_s: u32,
) -> Verdict {
    let Work { packet, rewrite, key, flow, .. } = work;
    if !note_reply(tables, flow, key, packet, now_s) {
        forget_half(tables, key);
        return Verdict::pass(Reason::NoFlow);
    }
    rewrite.set_src(flow.frontend, flow.frontend_port);
    rewrite.set_dst(packet.tuple.dst, flow.client_port);
    to_own_socket(tables, env, &flow.frontend, Reason::OwnReply, flow.backend_id)
}

/// Delivers what has the source `src` now. The node would take it for a martian if that is an address of its own, or one that
/// the link does not lead to; by lo it is not asked for.
#[inline(always)]
pub(super) fn to_own_socket<F: Family, T: Tables<F>>(
    tables: &T,
    env: &Env,
    src: &F::Addr,
    reason: Reason,
    backend: u32,
) -> Verdict {
    let by_lo = !env.is_loopback() && (tables.address(src) & ADDR_NODE != 0 || is_strict(tables, env.ifindex));
    if by_lo { Verdict::redirect(reason, LOOPBACK, backend) } else { Verdict::new(Action::Pass, reason, backend) }
}

#[inline(always)]
fn is_strict<F: Family, T: Tables<F>>(tables: &T, ifindex: u32) -> bool {
    F::VERSION == 4 && matches!(tables.iface(ifindex), Some(iface) if iface.flags & IFACE_STRICT != 0)
}
