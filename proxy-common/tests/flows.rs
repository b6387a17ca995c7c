//! Properties of whole connections: what went forward comes back as it was, and no two flows are mixed up.

mod memory;

use std::collections::HashMap;

use memory::{Memory, POD, TestFamily, UPLINK, link_to};
use proptest::prelude::*;
use proxy_common::{
    abi::{
        ADDR_VANISHED, Action, AffinityBy, AffinityKey, AffinityValue, BackendState, EndpointSet, Flow, FlowKey,
        FlowKind, FlowState, Reason, RingSlot, SnatEntry,
    },
    lb::{CHANGED_DST_PORT, CHANGED_SRC_PORT, Env, SockOutcome, SockRequest, connect},
    net::{Address, Family, Fragment, Packet, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Tuple, UDP, V4, V6},
};

/// Who calls what.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Call {
    /// A pod of this node (10 and 11 are endpoints themselves), or a client outside.
    from_pod: bool,
    client: u8,
    port: u16,
    /// 0 to 2: a VIP; 3: the NodePort.
    frontend: u8,
    tcp: bool,
}

fn any_call() -> impl Strategy<Value = Call> {
    // Few ports and clients, so that tuples meet.
    (any::<bool>(), 9u8..12, 40000u16..40003, 0u8..4, any::<bool>())
        .prop_map(|(from_pod, client, port, frontend, tcp)| Call { from_pod, client, port, frontend, tcp })
}

impl Call {
    fn link(&self) -> u32 {
        if self.from_pod { POD } else { UPLINK }
    }

    fn protocol(&self) -> u8 {
        if self.tcp { TCP } else { UDP }
    }

    fn tuple<F: TestFamily>(&self) -> Tuple<F> {
        let (dst, dst_port) = match self.frontend {
            0 => (F::vip(1), 80),
            1 => (F::vip(2), 80),
            2 => (F::vip(3), 8080),
            _ => (F::node(), 32000),
        };
        let src = if self.from_pod { F::pod(self.client) } else { F::client(self.client) };
        Tuple { src, dst, src_port: self.port, dst_port }
    }
}

fn packet<F: Family>(tuple: Tuple<F>, call: &Call, tcp_flags: u8) -> Packet<F> {
    let tcp_flags = if call.tcp { tcp_flags } else { 0 };
    let fragment = Fragment::Whole;
    Packet {
        tuple,
        protocol: call.protocol(),
        tcp_flags,
        fragment,
        icmp_error: false,
        datagram_id: 0,
        l3_offset: 14,
        l4_offset: 34,
    }
}

fn inverse<F: Family>(tuple: &Tuple<F>) -> Tuple<F> {
    Tuple { src: tuple.dst, dst: tuple.src, src_port: tuple.dst_port, dst_port: tuple.src_port }
}

/// The client's packet through both hooks: the tuple that the endpoint sees, or why there is none.
fn forward<F: TestFamily>(node: &Memory<F>, call: &Call, tcp_flags: u8) -> Result<Tuple<F>, Reason> {
    let env = Env { ifindex: call.link(), own: false, probe: false };
    let (verdict, work) = node.decide(true, &env, &packet(call.tuple::<F>(), call, tcp_flags));
    let tuple = work.rewrite.tuple;
    match verdict.action {
        Action::Redirect => {
            assert!(work.rewrite.bounce && verdict.ifindex == call.link(), "only a hairpin turns back");
            return Ok(tuple);
        }
        Action::Pass => {}
        _ => return Err(verdict.reason),
    }
    assert!(matches!(verdict.reason, Reason::NewFlow | Reason::Forward), "{verdict:?}");
    let env = Env { ifindex: link_to::<F>(&tuple.dst), own: false, probe: false };
    let (verdict, work) = node.decide(false, &env, &packet(tuple, call, tcp_flags));
    if verdict.action == Action::Pass { Ok(work.rewrite.tuple) } else { Err(verdict.reason) }
}

/// The endpoint's answer through both hooks: the tuple that the client sees.
fn back<F: TestFamily>(node: &Memory<F>, call: &Call, seen: &Tuple<F>, tcp_flags: u8) -> Tuple<F> {
    let answer = inverse(seen);
    let env = Env { ifindex: link_to::<F>(&answer.src), own: false, probe: false };
    let (verdict, work) = node.decide(true, &env, &packet(answer, call, tcp_flags));
    let tuple = work.rewrite.tuple;
    if verdict.action == Action::Redirect {
        assert!(work.rewrite.bounce);
        return tuple;
    }
    assert_eq!(verdict.action, Action::Pass, "{verdict:?}");
    let env = Env { ifindex: call.link(), own: false, probe: false };
    let (verdict, work) = node.decide(false, &env, &packet(tuple, call, tcp_flags));
    assert_eq!(verdict.action, Action::Pass, "{verdict:?}");
    work.rewrite.tuple
}

/// Opens all calls, then answers all of them.
fn calls_do_not_meet<F: TestFamily>(calls: &[Call], ports: u16) {
    let mut node = Memory::<F>::node();
    node.config.snat_last = node.config.snat_first + ports - 1;
    let mut live: HashMap<Call, Tuple<F>> = HashMap::new();
    for call in calls {
        match forward(&node, call, TCP_SYN) {
            Ok(seen) => {
                if let Some(before) = live.insert(*call, seen) {
                    assert_eq!(before, seen, "a repeated packet of {call:?} went elsewhere");
                }
            }
            Err(reason) => {
                assert!(!live.contains_key(call), "{call:?} was known, then {reason:?}");
                assert!(matches!(reason, Reason::SnatPortsBusy | Reason::TupleBusy), "{call:?}: {reason:?}");
            }
        }
    }
    let mut tuples: HashMap<(String, u8), Call> = HashMap::new();
    for (call, seen) in &live {
        let key = (format!("{seen:?}"), call.protocol());
        if let Some(other) = tuples.insert(key, *call) {
            panic!("{call:?} and {other:?} look alike to the endpoint: {seen:?}");
        }
        assert_eq!(
            back(&node, call, seen, TCP_SYN | TCP_ACK),
            inverse(&call.tuple::<F>()),
            "{call:?} seen as {seen:?}"
        );
        assert_eq!(forward(&node, call, TCP_ACK), Ok(*seen), "{call:?}");
    }
}

/// Any sequence of segments of few connections: an answer never reaches a client as if from a frontend that it did not call.
fn closing_calls_do_not_meet<F: TestFamily>(segments: &[(Call, u8, u32)]) {
    let mut node = Memory::<F>::node();
    node.config.snat_last = node.config.snat_first + 3;
    let mut called: HashMap<Call, Tuple<F>> = HashMap::new();
    for (call, what, wait_s) in segments {
        node.now_s += wait_s;
        let flags = [TCP_SYN, TCP_ACK, TCP_FIN | TCP_ACK, TCP_RST][usize::from(*what) % 4];
        if call.tcp && flags != TCP_SYN && !called.contains_key(call) {
            continue;
        }
        let Ok(seen) = forward(&node, call, flags) else {
            // Another connection took its port while it stood still: over, too.
            called.remove(call);
            continue;
        };
        called.insert(*call, seen);
        let answer = if flags == TCP_SYN { TCP_SYN | TCP_ACK } else { flags };
        assert_eq!(back(&node, call, &seen, answer), inverse(&call.tuple::<F>()), "{call:?} seen as {seen:?}");
        if call.tcp && flags & (TCP_FIN | TCP_RST) != 0 {
            // Over on both sides: its tuple may belong to another call from now on.
            called.remove(call);
        }
    }
}

fn any_flow<F: Family>(addr: impl Strategy<Value = F::Addr> + Clone) -> impl Strategy<Value = Flow<F>> {
    let kind =
        prop_oneof![Just(FlowKind::None), Just(FlowKind::Forward), Just(FlowKind::Reply), Just(FlowKind::Source)];
    let state = any_state();
    (addr.clone(), addr.clone(), addr, any::<[u16; 4]>(), any::<[u32; 6]>(), kind, state, 0u8..8).prop_map(
        |(frontend, backend, source, ports, numbers, kind, state, flags)| Flow {
            frontend,
            backend,
            source,
            frontend_port: ports[0],
            backend_port: ports[1],
            source_port: ports[2],
            client_port: ports[3],
            backend_id: numbers[0] % 7,
            generation: numbers[1] % 3,
            service: numbers[2] % 3,
            ifindex: numbers[3] % 14,
            last_seen_s: numbers[4],
            healed_s: numbers[5],
            kind,
            state,
            flags,
            ..Flow::EMPTY
        },
    )
}

fn any_state() -> impl Strategy<Value = FlowState> {
    prop_oneof![
        Just(FlowState::None),
        Just(FlowState::New),
        Just(FlowState::Established),
        Just(FlowState::FinFromClient),
        Just(FlowState::FinFromBackend),
        Just(FlowState::Closed),
    ]
}

fn any_addr<F: TestFamily>() -> impl Strategy<Value = F::Addr> + Clone {
    prop_oneof![
        (9u8..12).prop_map(F::pod),
        (19u8..22).prop_map(F::remote_pod),
        (9u8..12).prop_map(F::client),
        (0u8..5).prop_map(F::vip),
        Just(F::node()),
        Just(F::Addr::ZERO),
    ]
}

fn any_packet<F: TestFamily>() -> impl Strategy<Value = Packet<F>> {
    let port = prop_oneof![Just(80u16), Just(32000), Just(9376), 60998u16..61005, any::<u16>()];
    let fragment = prop_oneof![Just(Fragment::Whole), Just(Fragment::First), Just(Fragment::Later)];
    (any_addr::<F>(), any_addr::<F>(), port.clone(), port, any::<u8>(), any::<u8>(), fragment).prop_map(
        |(src, dst, src_port, dst_port, protocol, tcp_flags, fragment)| {
            let protocol = [TCP, UDP, TCP, protocol][usize::from(protocol) % 4];
            // As the parser leaves it.
            let has_ports = fragment != Fragment::Later && (protocol == TCP || protocol == UDP);
            let (src_port, dst_port) = if has_ports { (src_port, dst_port) } else { (0, 0) };
            let tuple = Tuple { src, dst, src_port, dst_port };
            Packet {
                tuple,
                protocol,
                tcp_flags,
                fragment,
                icmp_error: false,
                datagram_id: 7,
                l3_offset: 14,
                l4_offset: 34,
            }
        },
    )
}

/// Tables that nobody wrote on purpose, half of the entries at keys that the packets hit.
fn scrambled<F: TestFamily>(
    flows: Vec<(Packet<F>, Flow<F>, bool)>,
    sets: Vec<(u32, u32)>,
    slots: Vec<(u32, u32)>,
    free: [bool; 5],
) -> Memory<F> {
    let mut node = Memory::<F>::node();
    node.capacity = 40;
    node.sets = sets.into_iter().map(|(start, len)| EndpointSet { start, len }).collect();
    node.rings = slots.into_iter().map(|(backend, set)| RingSlot { backend, set }).collect();
    for (backend, free) in node.backends.iter_mut().zip(free) {
        backend.state = if free { BackendState::Free } else { BackendState::Serving };
    }
    for service in node.services.values_mut() {
        service.affinity_s = 100;
    }
    for (packet, mut flow, right) in flows {
        let key = FlowKey::of(&packet);
        flow.check = if right { key.check() } else { 5 };
        node.flows.borrow_mut().insert(key, flow);
        let entry = SnatEntry {
            client: flow.frontend,
            client_port: flow.client_port,
            state: flow.state,
            flags: flow.flags,
            last_seen_s: flow.last_seen_s,
            check: flow.check,
        };
        node.snats.borrow_mut().insert(key, entry);
        let affinity = AffinityKey { service: flow.service, by: AffinityBy::AddressV4, client: [0; 4] };
        let value =
            AffinityValue { backend: flow.backend_id, generation: flow.generation, last_used_s: flow.last_seen_s };
        node.affinities.borrow_mut().insert(affinity, value);
    }
    node
}

fn never_panics<F: TestFamily>(node: &Memory<F>, packets: &[(Packet<F>, u32, bool, bool)]) {
    for (packet, ifindex, own, ingress) in packets {
        let (verdict, work) = node.decide(*ingress, &Env { ifindex: *ifindex, own: *own, probe: false }, packet);
        match verdict.action {
            Action::Pass | Action::Redirect if !packet.has_ports() => {
                let ports = CHANGED_SRC_PORT | CHANGED_DST_PORT;
                assert_eq!(work.rewrite.changed & ports, 0);
            }
            Action::Pass | Action::Redirect | Action::Reply | Action::Drop => {}
        }
    }
}

macro_rules! per_family {
    ($module:ident, $family:ty) => {
        mod $module {
            use super::*;
            proptest! {
                #![proptest_config(ProptestConfig::with_cases(150))]
                #[test]
                fn many_ports(calls in prop::collection::vec(any_call(), 1..60)) {
                    calls_do_not_meet::<$family>(&calls, 4000);
                }

                #[test]
                fn hardly_any_ports(calls in prop::collection::vec(any_call(), 1..60)) {
                    calls_do_not_meet::<$family>(&calls, 3);
                }

                #[test]
                fn connections_that_end(
                    segments in prop::collection::vec((any_call(), any::<u8>(), 0u32..200), 1..60),
                ) {
                    closing_calls_do_not_meet::<$family>(&segments);
                }

                #[test]
                fn any_tables_and_packets(
                    known in prop::collection::vec(
                        (any_packet::<$family>(), any_flow::<$family>(any_addr::<$family>()), any::<bool>()), 0..20),
                    others in prop::collection::vec((any_packet::<$family>(), 9u32..14, any::<bool>(), any::<bool>()), 1..20),
                    sets in prop::collection::vec((any::<u32>(), 0u32..9), 0..3),
                    slots in prop::collection::vec((0u32..7, 0u32..3), 0..9),
                    free in any::<[bool; 5]>(),
                ) {
                    let mut packets = others;
                    packets.extend(known.iter().map(|(packet, flow, ingress)| (*packet, flow.ifindex, !*ingress, *ingress)));
                    never_panics(&scrambled::<$family>(known, sets, slots, free), &packets);
                }
            }
        }
    };
}
per_family!(v4, V4);
per_family!(v6, V6);

/// A UDP socket of pod 9 connects, its endpoint leaves, and it sends on.
fn stale_sockets_are_steered<F: TestFamily>() {
    let mut node = Memory::<F>::node();
    let vip = F::vip(1);
    let request = SockRequest { addr: vip, port: 80, protocol: UDP, cookie: 77, netns: 5 };
    let SockOutcome::To { addr, port, .. } = connect(&node, &request) else { panic!("not translated") };
    let call = Call { from_pod: true, client: 9, port: 40000, frontend: 0, tcp: false };
    let tuple = Tuple { dst: addr, dst_port: port, ..call.tuple::<F>() };
    let send = |node: &Memory<F>| {
        let (verdict, work) =
            node.decide(true, &Env { ifindex: POD, own: false, probe: false }, &packet(tuple, &call, 0));
        (verdict.action, verdict.reason, work.rewrite.tuple)
    };
    node.cookie = 77;
    assert_eq!(send(&node), (Action::Pass, Reason::NotOurs, tuple), "the endpoint serves");
    node.addrs.insert(addr, ADDR_VANISHED);
    assert_eq!(send(&node), (Action::Pass, Reason::UnknownPort, tuple), "as long as it serves");

    let id = node.backends.iter().position(|it| it.addr == addr && it.port == port).expect("one of the four");
    let left = (1..5).filter(|it| *it != id as u32).map(|backend| RingSlot { backend, set: 1 });
    node.rings = left.collect();
    node.sets[1].len = 3;
    node.backends[id].state = BackendState::Free;
    node.backends[id].generation += 1;
    for cookie in [0, 78] {
        node.cookie = cookie;
        assert_eq!(send(&node), (Action::Pass, Reason::UnknownPort, tuple), "a socket that talks to the pod itself");
    }
    let direct = SockRequest { addr, port, cookie: 78, ..request };
    assert_eq!(connect(&node, &direct), SockOutcome::Pass(Reason::NotOurs), "no frontend for sockets that connect");

    node.cookie = 77;
    let (action, reason, seen) = send(&node);
    assert_eq!((action, reason), (Action::Pass, Reason::Resteered));
    assert_ne!(seen.dst, addr);
    assert_eq!(send(&node), (Action::Pass, Reason::Forward, seen), "the next packet");
    assert_eq!(back(&node, &call, &seen, 0), inverse(&tuple), "the answer comes from where the socket sends to");

    node.flows.borrow_mut().clear();
    node.new_flows.borrow_mut().clear();
    node.services.clear();
    let (action, reason, _) = send(&node);
    assert_eq!((action, reason), (Action::Reply, Reason::NoEndpoints), "its Service is gone");
}

#[test]
fn stale_sockets() {
    stale_sockets_are_steered::<V4>();
    stale_sockets_are_steered::<V6>();
}
