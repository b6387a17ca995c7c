//! Fragments: the first one is decided like any packet and remembered, the later ones follow it. Called by decide.rs and, as
//! steps of their own (whole packets must not pay for them), by the kernel programs.

use super::decide::UNALLOCATED;
use super::tables::Tables;
use super::verdict::{CHANGED_DST_PORT, CHANGED_SRC_PORT, Rewrite, Verdict, Work};
use crate::abi::{ADDR_CLUSTER_IP, ADDR_EXTERNAL, ADDR_NODE, Action, FragEntry, FragKey, Reason};
use crate::net::{Family, Packet, SCTP};

/// A receiver keeps an incomplete datagram for 30 s (IPv4, net.ipv4.ipfrag_time) or 60 s (RFC 8200 section 4.5).
const FRAGMENT_TIMEOUT_S: u32 = 60;

/// Remembers what became of a first fragment; one that cannot be translated right is dropped after all.
#[inline(always)]
pub fn remember_fragment<F: Family, T: Tables<F>>(tables: &T, egress: bool, work: &mut Work<F>, verdict: &mut Verdict) {
    let Work { packet, rewrite, frag_key, frag, .. } = work;
    if packet.protocol == SCTP && rewrite.changed & (CHANGED_SRC_PORT | CHANGED_DST_PORT) != 0 {
        // By how much the checksum changes depends on the length of the whole packet, which only its last fragment tells.
        *verdict = Verdict::new(Action::Drop, Reason::SctpFragment, verdict.backend);
        return;
    }
    let ifindex = match verdict.action {
        Action::Pass => 0,
        Action::Redirect => verdict.ifindex,
        Action::Reply | Action::Drop => return,
    };
    if matches!(verdict.reason, Reason::NotOurs | Reason::NoTranslation) {
        // Most fragments are only passing through: their later ones need no entry to pass.
        return;
    }
    *frag_key = FragKey::of(packet, egress);
    *frag = FragEntry {
        src: rewrite.tuple.src,
        dst: rewrite.tuple.dst,
        ifindex,
        backend: verdict.backend,
        seen_s: tables.now_s(),
        check: frag_key.check(),
        bounce: u8::from(rewrite.bounce),
        zero: [0; 3],
    };
    // A table that takes no entry costs this datagram.
    let _ = tables.put_frag(frag_key, frag);
}

/// Does to a later fragment what was done to the first.
#[inline(always)]
pub fn follow_fragment<F: Family, T: Tables<F>>(tables: &T, egress: bool, work: &mut Work<F>) -> Verdict {
    let Work { packet, rewrite, frag_key, frag, .. } = work;
    rewrite.start(packet);
    *frag_key = FragKey::of(packet, egress);
    let check = frag_key.check();
    let now_s = tables.now_s();
    let known = tables.frag(frag_key, |there| {
        *frag = *there;
        there.check == check && now_s.wrapping_sub(there.seen_s) <= FRAGMENT_TIMEOUT_S
    });
    if known == Some(true) { follow(rewrite, frag) } else { alone(tables, packet) }
}

#[inline(always)]
fn follow<F: Family>(rewrite: &mut Rewrite<F>, first: &FragEntry<F>) -> Verdict {
    rewrite.set_src(first.src, 0);
    rewrite.set_dst(first.dst, 0);
    rewrite.bounce = first.bounce != 0;
    if first.ifindex != 0 {
        return Verdict::redirect(Reason::FragmentFollows, first.ifindex, first.backend);
    }
    let reason = if rewrite.changed == 0 { Reason::LaterFragment } else { Reason::FragmentFollows };
    Verdict::new(Action::Pass, reason, first.backend)
}

/// A later fragment whose first is not known.
#[inline(always)]
fn alone<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>) -> Verdict {
    let flags = tables.address(&packet.tuple.dst);
    if flags == 0 && tables.in_service_cidr(&packet.tuple.dst) {
        return UNALLOCATED;
    }
    let vip = flags & (ADDR_CLUSTER_IP | ADDR_EXTERNAL) != 0 && flags & ADDR_NODE == 0;
    if vip { Verdict::drop(Reason::FragmentAlone) } else { Verdict::pass(Reason::LaterFragment) }
}
