//! What both tc hooks do: find the family, parse, decide, carry out, record.

use crate::config::config;
use crate::frame::{Deep, Frame};
use crate::icmp_error::rewrite_error;
use crate::maps::{FamilyMaps, Scratch};
use crate::record::record;
use crate::redirect;
use crate::reply::{self, ReplyFamily};
use crate::rewrite::{RewriteFamily, rewrite};
use crate::socket::KernelFamily;
use crate::tables::KernelTables;
use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT};
use aya_ebpf::helpers::generated::bpf_skb_pull_data;
use proxy_common::abi::{Action, CONFIG_DRY_RUN, CONFIG_IPV4, CONFIG_IPV6, LOOPBACK, Reason, ServiceCidrs};
use proxy_common::lb::{
    Env, Rewrite, Tables, TranslatedFamily, Verdict, Work, decide_error, follow_fragment, pass_error, remember_fragment,
};
use proxy_common::net::{
    ETH_LEN, ETH_P_8021AD, ETH_P_8021Q, ETH_P_IP, ETH_P_IPV6, Family, Fragment, Packet, ParseError, V4, V6,
    parse_packet, parse_quote,
};

/// On with the next program, or with the stack (tcx and clsact alike).
pub(crate) const TCX_NEXT: i32 = -1;
/// As much of a packet as is made readable if its linear part is too short.
const PULL_LEN: u32 = 256;
/// The part of a VLAN tag that names the VLAN.
const VLAN_NUMBER: u32 = 0x0fff;

/// A family that the packet hooks handle.
pub(crate) trait PacketFamily:
    TranslatedFamily + FamilyMaps + ServiceCidrs + KernelFamily + RewriteFamily + ReplyFamily
{
}
impl<F: TranslatedFamily + FamilyMaps + ServiceCidrs + KernelFamily + RewriteFamily + ReplyFamily> PacketFamily for F {}

/// One side of an interface.
pub(crate) trait Direction {
    const EGRESS: bool;
    fn decide<F: PacketFamily>(tables: &KernelTables, env: &Env, work: &mut Work<F>) -> Verdict;
}

// What is to be done after the decision, as bits.
/// The packet stays as it is.
const UNCHANGED: i32 = 0;
/// Change, redirect, answer or drop it.
const CHANGED: i32 = 1;
/// Remember what becomes of this first fragment.
const FIRST_FRAGMENT: i32 = 2;
/// Nothing is decided: it follows its first fragment.
const LATER_FRAGMENT: i32 = 4;
/// Nothing is decided: it follows the packet that it quotes.
const ICMP_ERROR: i32 = 8;

/// Finds the family of a frame, and runs its steps. They are functions of their own, which hand over their results in
/// memory: the verifier need not follow each way through the decision once more through the changes, and each has the
/// stack to itself.
#[inline(always)]
pub(crate) fn run<D: Direction>(skb: *mut __sk_buff, v4: Steps<V4>, v6: Steps<V6>) -> i32 {
    // SAFETY: context.
    let (protocol, tagged) = unsafe { ((*skb).protocol, is_vlan_tagged(skb)) };
    let reason = match u16::from_be(protocol as u16) {
        _ if tagged => Reason::VlanTag,
        ETH_P_8021Q | ETH_P_8021AD => Reason::VlanTag,
        ETH_P_IP if config().has(CONFIG_IPV4) => return run_family::<D, V4>(skb, v4),
        ETH_P_IPV6 if config().has(CONFIG_IPV6) => return run_family::<D, V6>(skb, v6),
        ETH_P_IP | ETH_P_IPV6 => Reason::FamilyOff,
        _ => Reason::NotIp,
    };
    record(&Verdict::pass(reason));
    TCX_NEXT
}

/// True if a VLAN tag beside the frame names a VLAN: it is handled on its VLAN device. A tag that carries a priority alone (IEEE
/// 802.1Q: VLAN 0) does not matter to the stack either.
///
/// # Safety
/// `skb` must be the program's context.
#[inline(always)]
unsafe fn is_vlan_tagged(skb: *mut __sk_buff) -> bool {
    // SAFETY: by the caller's promise.
    unsafe { (*skb).vlan_present != 0 && (*skb).vlan_tci & VLAN_NUMBER != 0 }
}

type Step<F> = fn(*mut __sk_buff, &mut Scratch<F>) -> i32;

pub(crate) struct Steps<F: Family> {
    pub decide: Step<F>,
    pub remember_fragment: Step<F>,
    pub follow_fragment: Step<F>,
    pub decide_error: Step<F>,
    pub carry_out_error: Step<F>,
    pub carry_out: Step<F>,
}

#[inline(always)]
fn run_family<D: Direction, F: PacketFamily>(skb: *mut __sk_buff, steps: Steps<F>) -> i32 {
    let Some(scratch) = scratch::<D, F>() else { return TCX_NEXT };
    let mut next = (steps.decide)(skb, scratch);
    if next > CHANGED {
        if next & FIRST_FRAGMENT != 0 {
            (steps.remember_fragment)(skb, scratch);
        } else if next == LATER_FRAGMENT {
            next = (steps.follow_fragment)(skb, scratch);
        } else {
            return run_error(skb, scratch, steps);
        }
    }
    let action = match next & CHANGED {
        UNCHANGED => TCX_NEXT,
        _ if config().has(CONFIG_DRY_RUN) => TCX_NEXT,
        _ => (steps.carry_out)(skb, scratch),
    };
    record(&scratch.verdict);
    action
}

#[inline(always)]
fn run_error<F: PacketFamily>(skb: *mut __sk_buff, scratch: &mut Scratch<F>, steps: Steps<F>) -> i32 {
    let action = match (steps.decide_error)(skb, scratch) {
        UNCHANGED => TCX_NEXT,
        _ if config().has(CONFIG_DRY_RUN) => TCX_NEXT,
        _ => (steps.carry_out_error)(skb, scratch),
    };
    record(&scratch.verdict);
    action
}

/// This CPU's and this direction's own element.
#[inline(always)]
fn scratch<D: Direction, F: PacketFamily>() -> Option<&'static mut Scratch<F>> {
    let scratch = F::scratch().get_ptr_mut(u32::from(D::EGRESS))?;
    // SAFETY: no other run uses the element before this one ends, and no caller holds two references at once.
    Some(unsafe { &mut *scratch })
}

/// First step: parse and decide.
#[inline(always)]
pub(crate) fn decide<D: Direction, F: PacketFamily>(skb: *mut __sk_buff, scratch: &mut Scratch<F>) -> i32 {
    let tables = KernelTables { skb };
    // SAFETY: context.
    let (ifindex, ingress_ifindex) = unsafe { ((*skb).ifindex, (*skb).ingress_ifindex) };
    let env = env::<D>(ifindex, ingress_ifindex);
    let work = &mut scratch.work;
    scratch.verdict = match parse(skb, &mut work.packet) {
        Ok(()) if matches!(work.packet.fragment, Fragment::Later) => return LATER_FRAGMENT,
        Ok(()) if work.packet.icmp_error => return ICMP_ERROR,
        Ok(()) => D::decide(&tables, &env, work),
        Err(ParseError::Malformed) => Verdict::pass(Reason::Malformed),
        Err(ParseError::TooManyHeaders) => Verdict::pass(Reason::TooManyHeaders),
    };
    if matches!(scratch.verdict.reason, Reason::Malformed | Reason::TooManyHeaders) {
        return UNCHANGED;
    }
    let first = if matches!(work.packet.fragment, Fragment::First) { FIRST_FRAGMENT } else { 0 };
    first | changed(scratch)
}

/// The kernel notes the interface of each packet that comes in before any program sees it. So a packet at ingress that came by
/// none is no packet: the agent asks, by BPF_PROG_TEST_RUN.
#[inline(always)]
fn env<D: Direction>(ifindex: u32, ingress_ifindex: u32) -> Env {
    let by_none = ingress_ifindex == 0;
    Env { ifindex, own: D::EGRESS && by_none, probe: !D::EGRESS && by_none }
}

#[inline(always)]
fn changed<F: PacketFamily>(scratch: &Scratch<F>) -> i32 {
    let unchanged = matches!(scratch.verdict.action, Action::Pass) && scratch.work.rewrite.changed == 0;
    if unchanged { UNCHANGED } else { CHANGED }
}

/// After the decision of a first fragment.
#[inline(always)]
pub(crate) fn remember<D: Direction, F: PacketFamily>(skb: *mut __sk_buff, scratch: &mut Scratch<F>) -> i32 {
    remember_fragment(&KernelTables { skb }, D::EGRESS, &mut scratch.work, &mut scratch.verdict);
    UNCHANGED
}

/// Instead of a decision.
#[inline(always)]
pub(crate) fn follow<D: Direction, F: PacketFamily>(skb: *mut __sk_buff, scratch: &mut Scratch<F>) -> i32 {
    scratch.verdict = follow_fragment(&KernelTables { skb }, D::EGRESS, &mut scratch.work);
    changed(scratch)
}

/// Instead of a decision.
#[inline(always)]
pub(crate) fn decide_icmp_error<D: Direction, F: PacketFamily>(skb: *mut __sk_buff, scratch: &mut Scratch<F>) -> i32 {
    let work = &mut scratch.work;
    let tables = KernelTables { skb };
    // SAFETY: context.
    let (ifindex, ingress_ifindex, len) = unsafe { ((*skb).ifindex, (*skb).ingress_ifindex, (*skb).len) };
    let env = env::<D>(ifindex, ingress_ifindex);
    let pull = if len < PULL_LEN { len } else { PULL_LEN };
    if Frame::of(skb).len() < pull as usize {
        // SAFETY: context. If it fails, the quote is taken as far as it can be read.
        unsafe { bpf_skb_pull_data(skb, pull) };
    }
    scratch.verdict = match parse_quote(&Deep(Frame::of(skb)), &work.packet, &mut work.quote) {
        Some(has_checksum) => {
            work.quoted_checksum = has_checksum;
            decide_error(&tables, &env, D::EGRESS, work)
        }
        None => pass_error(&tables, D::EGRESS, &work.packet),
    };
    let translated = matches!(scratch.verdict.reason, Reason::IcmpError);
    if translated || matches!(scratch.verdict.action, Action::Drop) { CHANGED } else { UNCHANGED }
}

#[inline(always)]
pub(crate) fn carry_out_icmp_error<D: Direction, F: PacketFamily>(
    skb: *mut __sk_buff,
    scratch: &mut Scratch<F>,
) -> i32 {
    let verdict = &mut scratch.verdict;
    if matches!(verdict.action, Action::Drop) {
        return TC_ACT_SHOT;
    }
    if rewrite_error(skb, &scratch.work).is_err() {
        *verdict = Verdict::drop(Reason::RewriteFailed);
        return TC_ACT_SHOT;
    }
    match verdict.action {
        Action::Redirect if scratch.work.rewrite.bounce => redirect::out_of(verdict.ifindex),
        Action::Redirect => redirect::by_neighbour(verdict.ifindex),
        _ => TCX_NEXT,
    }
}

/// Parses the linear part; if it is too short, makes more of the packet linear and tries once more.
#[inline(always)]
fn parse<F: PacketFamily>(skb: *mut __sk_buff, packet: &mut Packet<F>) -> Result<(), ParseError> {
    let frame = Frame::of(skb);
    let result = parse_packet(&frame, ETH_LEN, packet);
    // SAFETY: context.
    let len = unsafe { (*skb).len };
    if result.is_ok() || frame.len() >= len as usize {
        return result;
    }
    let pull = if len < PULL_LEN { len } else { PULL_LEN };
    // SAFETY: context.
    if unsafe { bpf_skb_pull_data(skb, pull) } != 0 {
        return result;
    }
    parse_packet(&Frame::of(skb), ETH_LEN, packet)
}

/// Second step: change, redirect, answer or drop.
#[inline(always)]
pub(crate) fn carry_out<D: Direction, F: PacketFamily>(skb: *mut __sk_buff, scratch: &mut Scratch<F>) -> i32 {
    let (packet, new) = (&scratch.work.packet, &scratch.work.rewrite);
    let verdict = &mut scratch.verdict;
    match verdict.action {
        Action::Drop => TC_ACT_SHOT,
        Action::Reply => match refuse::<D, F>(skb, packet, new, verdict.reason) {
            Ok(action) => action,
            Err(reason) => {
                *verdict = Verdict::drop(reason);
                TC_ACT_SHOT
            }
        },
        Action::Pass | Action::Redirect => {
            if rewrite(skb, packet, new).is_err() {
                *verdict = Verdict::drop(Reason::RewriteFailed);
                return TC_ACT_SHOT;
            }
            match verdict.action {
                Action::Pass => TCX_NEXT,
                _ if new.bounce => redirect::out_of(verdict.ifindex),
                _ => redirect::by_neighbour(verdict.ifindex),
            }
        }
    }
}

#[inline(always)]
fn refuse<D: Direction, F: PacketFamily>(
    skb: *mut __sk_buff,
    packet: &Packet<F>,
    new: &Rewrite<F>,
    why: Reason,
) -> Result<i32, Reason> {
    let tables = KernelTables { skb };
    let now_s = <KernelTables as Tables<F>>::now_s(&tables);
    if !reply::within_budget(now_s) {
        return Err(Reason::ReplyLimited);
    }
    let mtu = if matches!(why, Reason::TooLong) { Some(new.mtu) } else { None };
    if reply::build(skb, packet, mtu).is_err() {
        return Err(Reason::ReplyFailed);
    }
    // SAFETY: context.
    let ifindex = unsafe { (*skb).ifindex };
    Ok(match (D::EGRESS, ifindex) {
        (false, _) => redirect::out_of(ifindex),
        // From an address of the node to another: by lo and with a route, or it would be a martian.
        (true, LOOPBACK) => redirect::by_neighbour(LOOPBACK),
        (true, _) => redirect::into(ifindex),
    })
}

/// Makes the two families' steps and the program of one direction.
macro_rules! tc_program {
    ($program:ident, $direction:ty) => {
        type Skb = *mut aya_ebpf::bindings::__sk_buff;

        $crate::hooks::packet::steps!(V4, $direction: decide_v4 remember_v4 follow_v4 decide_error_v4 carry_out_error_v4
            carry_out_v4);
        $crate::hooks::packet::steps!(V6, $direction: decide_v6 remember_v6 follow_v6 decide_error_v6 carry_out_error_v6
            carry_out_v6);

        #[aya_ebpf::macros::classifier]
        pub(crate) fn $program(ctx: aya_ebpf::programs::TcContext) -> i32 {
            use $crate::hooks::packet::{Steps, run};
            let v4 = Steps {
                decide: decide_v4,
                remember_fragment: remember_v4,
                follow_fragment: follow_v4,
                decide_error: decide_error_v4,
                carry_out_error: carry_out_error_v4,
                carry_out: carry_out_v4,
            };
            let v6 = Steps {
                decide: decide_v6,
                remember_fragment: remember_v6,
                follow_fragment: follow_v6,
                decide_error: decide_error_v6,
                carry_out_error: carry_out_error_v6,
                carry_out: carry_out_v6,
            };
            run::<$direction>(ctx.skb.skb, v4, v6)
        }
    };
}
pub(crate) use tc_program;

macro_rules! steps {
    ($family:ident, $direction:ty: $decide:ident $remember:ident $follow:ident $decide_error:ident
        $carry_out_error:ident $carry_out:ident) => {
        #[inline(never)]
        fn $decide(skb: Skb, scratch: &mut $crate::maps::Scratch<proxy_common::net::$family>) -> i32 {
            $crate::hooks::packet::decide::<$direction, proxy_common::net::$family>(skb, scratch)
        }

        #[inline(never)]
        fn $remember(skb: Skb, scratch: &mut $crate::maps::Scratch<proxy_common::net::$family>) -> i32 {
            $crate::hooks::packet::remember::<$direction, proxy_common::net::$family>(skb, scratch)
        }

        #[inline(never)]
        fn $follow(skb: Skb, scratch: &mut $crate::maps::Scratch<proxy_common::net::$family>) -> i32 {
            $crate::hooks::packet::follow::<$direction, proxy_common::net::$family>(skb, scratch)
        }

        #[inline(never)]
        fn $decide_error(skb: Skb, scratch: &mut $crate::maps::Scratch<proxy_common::net::$family>) -> i32 {
            $crate::hooks::packet::decide_icmp_error::<$direction, proxy_common::net::$family>(skb, scratch)
        }

        #[inline(never)]
        fn $carry_out_error(skb: Skb, scratch: &mut $crate::maps::Scratch<proxy_common::net::$family>) -> i32 {
            $crate::hooks::packet::carry_out_icmp_error::<$direction, proxy_common::net::$family>(skb, scratch)
        }

        #[inline(never)]
        fn $carry_out(skb: Skb, scratch: &mut $crate::maps::Scratch<proxy_common::net::$family>) -> i32 {
            $crate::hooks::packet::carry_out::<$direction, proxy_common::net::$family>(skb, scratch)
        }
    };
}
pub(crate) use steps;
