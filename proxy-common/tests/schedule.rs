//! Schedulers by statistics: what many new flows get, on the packet path and at connect time. The rings are written by hand here; how
//! the agent makes them is tested beside it (`proxy-agent/src/reconcile/slots_tests.rs`).

mod memory;

use std::collections::HashMap;

use memory::{Memory, TestFamily, UPLINK};
use proxy_common::{
    abi::{Action, Algorithm, BackendState, EndpointSet, Reason, RingSlot},
    lb::{Env, SockOutcome, SockRequest, connect},
    net::{Address, Fragment, Packet, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Tuple, UDP, V4, V6},
};

const OUTSIDE: Env = Env { ifindex: UPLINK, own: false, probe: false };

/// The small node with one algorithm for all its Services, and slots as given (`[3, 1]`: three of backend 1, one of backend 2).
fn node<F: TestFamily>(algorithm: Algorithm, shares: &[u32]) -> Memory<F> {
    let mut memory = Memory::<F>::node();
    memory.services.values_mut().for_each(|service| service.algorithm = algorithm);
    memory.rings =
        (1..).zip(shares).flat_map(|(backend, times)| (0..*times).map(move |_| RingSlot { backend, set: 1 })).collect();
    memory.sets[1] = EndpointSet { start: 0, len: memory.rings.len() as u32 };
    for (backend, share) in memory.backends.iter_mut().skip(1).zip(shares) {
        backend.weight = *share as u16;
    }
    memory
}

fn segment<F: TestFamily>(client: u8, port: u16, dst: (F::Addr, u16), tcp_flags: u8) -> Packet<F> {
    Packet {
        tuple: Tuple { src: F::client(client), dst: dst.0, src_port: port, dst_port: dst.1 },
        protocol: TCP,
        tcp_flags,
        fragment: Fragment::Whole,
        ..Packet::EMPTY
    }
}

fn vip<F: TestFamily>() -> (F::Addr, u16) {
    (F::vip(1), 80)
}

/// The backend of a new connection from outside.
fn opened<F: TestFamily>(memory: &Memory<F>, client: u8, port: u16, dst: (F::Addr, u16)) -> u32 {
    let (verdict, _) = memory.decide(true, &OUTSIDE, &segment::<F>(client, port, dst, TCP_SYN));
    assert_eq!(verdict.reason, Reason::NewFlow);
    verdict.backend
}

/// The backend of a socket that connects.
fn connected<F: TestFamily>(memory: &Memory<F>, cookie: u64, netns: u64) -> u32 {
    let request = SockRequest::<F> { addr: F::vip(1), port: 80, protocol: TCP, cookie, netns };
    let SockOutcome::To { addr, .. } = connect(memory, &request) else { panic!("not translated") };
    (1..).zip(&memory.backends[1..]).find(|(_, backend)| backend.addr == addr).expect("a backend").0
}

fn counts(chosen: impl Iterator<Item = u32>) -> [u32; 4] {
    let mut counts = [0; 4];
    chosen.for_each(|backend| counts[backend as usize - 1] += 1);
    counts
}

/// Pearson's chi-square against the shares stays below the 99.9 % quantile of three degrees of freedom.
fn assert_fits(counts: [u32; 4], shares: [u32; 4]) {
    let (flows, all): (u32, u32) = (counts.iter().sum(), shares.iter().sum());
    let term = |(count, share): (&u32, &u32)| {
        let expected = f64::from(flows) * f64::from(*share) / f64::from(all);
        (f64::from(*count) - expected).powi(2) / expected
    };
    let chi_square: f64 = counts.iter().zip(&shares).map(term).sum();
    assert!(chi_square < 16.27, "{counts:?} instead of {shares:?}: chi-square {chi_square:.1}");
}

fn all_clients() -> impl Iterator<Item = (u8, u16)> {
    (1..=250).flat_map(|client| (0..40).map(move |port| (client, 40000 + port)))
}

fn random_follows_the_shares<F: TestFamily>() {
    for shares in [[1, 1, 1, 1], [1, 2, 3, 4], [1, 0, 9, 0]] {
        let memory = node::<F>(Algorithm::Random, &shares);
        let packets = counts(all_clients().map(|(client, port)| opened(&memory, client, port, vip::<F>())));
        let sockets = counts((0..10_000).map(|cookie| connected(&memory, cookie, 7)));
        if shares.contains(&0) {
            assert_eq!([packets[1], packets[3], sockets[1], sockets[3]], [0; 4]);
            let tenth = f64::from(packets[0]) / 10_000.0;
            assert!((tenth - 0.1).abs() < 0.02, "{packets:?}");
        } else {
            assert_fits(packets, shares);
            assert_fits(sockets, shares);
        }
    }
}

#[test]
fn random_is_chi_square() {
    random_follows_the_shares::<V4>();
    random_follows_the_shares::<V6>();
}

fn turns_are_exact<F: TestFamily>() {
    let shares = [1, 2, 3, 4];
    let memory = node::<F>(Algorithm::RoundRobin, &shares);
    // Packets from outside, to the ClusterIP and to the NodePort, and sockets: one order for all.
    let chosen: Vec<u32> = (0..200_u16)
        .map(|nth| match nth % 3 {
            0 => opened(&memory, 9, 40_000 + nth, vip::<F>()),
            1 => opened(&memory, 9, 40_000 + nth, (F::node(), 32000)),
            _ => connected(&memory, u64::from(nth), 7),
        })
        .collect();
    for (start, run) in chosen.windows(10).enumerate() {
        assert_eq!(counts(run.iter().copied()), shares, "the run from {start} on");
    }
    let turns = memory.turns.borrow()[&1];
    for _ in 0..3 {
        let (verdict, _) = memory.decide(true, &OUTSIDE, &segment::<F>(9, 40_000, vip::<F>(), TCP_SYN));
        assert_eq!((verdict.reason, verdict.backend), (Reason::Forward, chosen[0]));
    }
    assert_eq!(memory.turns.borrow()[&1], turns, "a SYN that comes again takes no turn");
}

#[test]
fn round_robin_is_exact() {
    turns_are_exact::<V4>();
    turns_are_exact::<V6>();
}

fn nodes_agree<F: TestFamily>(algorithm: Algorithm) {
    // Any table will do: every node has the same.
    let here = node::<F>(algorithm, &[5, 5, 5, 5]);
    let mut there = node::<F>(algorithm, &[5, 5, 5, 5]);
    there.config.seed = 4711;
    let mut of_client: HashMap<u8, u32> = HashMap::new();
    let mut moved = 0;
    for (client, port) in all_clients() {
        let backend = opened(&here, client, port, vip::<F>());
        assert_eq!(backend, opened(&there, client, port, vip::<F>()));
        moved += u32::from(*of_client.entry(client).or_insert(backend) != backend);
    }
    if algorithm == Algorithm::Maglev {
        assert_eq!(moved, 0, "whatever the port");
        let other_frontend = opened(&here, 9, 1, (F::vip(3), 8080));
        assert_eq!(other_frontend, of_client[&9]);
        let clients = counts(of_client.values().copied());
        assert!(clients.iter().all(|count| (40..90).contains(count)), "{clients:?} of 250");
    } else {
        assert_fits(
            counts(
                all_clients()
                    .map(|(client, port)| opened(&node::<F>(algorithm, &[5, 5, 5, 5]), client, port, vip::<F>())),
            ),
            [1; 4],
        );
    }
}

#[test]
fn consistent_choices_are_the_same_on_every_node() {
    nodes_agree::<V4>(Algorithm::Maglev);
    nodes_agree::<V6>(Algorithm::Maglev);
    nodes_agree::<V4>(Algorithm::MaglevTuple);
    nodes_agree::<V6>(Algorithm::MaglevTuple);
}

fn pods_keep_their_endpoint<F: TestFamily>() {
    let memory = node::<F>(Algorithm::Maglev, &[5, 5, 5, 5]);
    let of_netns = |netns| connected(&memory, netns * 100, netns);
    for netns in 1..100 {
        let chosen = of_netns(netns);
        assert!((0..20).all(|cookie| connected(&memory, cookie, netns) == chosen));
    }
    assert_fits(counts((1..10_000).map(of_netns)), [1; 4]);
    let mut other = node::<F>(Algorithm::Maglev, &[5, 5, 5, 5]);
    other.config.seed = 4711;
    let same = (1..1000).filter(|netns| connected(&other, 1, *netns) == of_netns(*netns)).count();
    assert!(same < 400, "pods of two nodes whose namespaces have the same cookie: {same} of 1000 agree");
    let tuple = node::<F>(Algorithm::MaglevTuple, &[5, 5, 5, 5]);
    assert_fits(counts((1..10_000).map(|cookie| connected(&tuple, cookie, 7))), [1; 4]);
}

#[test]
fn a_pod_keeps_its_endpoint_at_connect_time() {
    pods_keep_their_endpoint::<V4>();
    pods_keep_their_endpoint::<V6>();
}

fn goes_on_elsewhere<F: TestFamily>() {
    let reason = |memory: &Memory<F>, dst, tcp_flags| {
        memory.decide(true, &OUTSIDE, &segment::<F>(9, 40_000, dst, tcp_flags)).0.reason
    };
    for algorithm in [Algorithm::Maglev, Algorithm::MaglevTuple] {
        let first = node::<F>(algorithm, &[5, 5, 5, 5]);
        let backend = opened(&first, 9, 40_000, vip::<F>());
        let second = node::<F>(algorithm, &[5, 5, 5, 5]);
        assert_eq!(reason(&second, vip::<F>(), TCP_SYN | TCP_ACK), Reason::NoFlow);
        assert_eq!(reason(&second, vip::<F>(), TCP_RST), Reason::NoFlow);
        assert_eq!(reason(&second, (F::node(), 32000), TCP_ACK), Reason::NoFlow, "maybe a socket of the node");
        let ack = segment::<F>(9, 40_000, vip::<F>(), TCP_ACK);
        let (adopted, _) = second.decide(true, &OUTSIDE, &ack);
        assert_eq!((adopted.action, adopted.reason, adopted.backend), (Action::Pass, Reason::Adopted, backend));
        let (known, _) = second.decide(true, &OUTSIDE, &ack);
        assert_eq!((known.reason, known.backend), (Reason::Forward, backend));
    }
    for algorithm in [Algorithm::Random, Algorithm::RoundRobin, Algorithm::LeastConnections] {
        assert_eq!(reason(&node::<F>(algorithm, &[1; 4]), vip::<F>(), TCP_ACK), Reason::NoFlow);
    }
    let mut empty = node::<F>(Algorithm::Maglev, &[5; 4]);
    empty.sets[1] = EndpointSet::empty(proxy_common::abi::EmptySet::Refuse);
    assert_eq!(reason(&empty, vip::<F>(), TCP_ACK), Reason::NoFlow);
    assert_eq!(reason(&empty, vip::<F>(), TCP_SYN), Reason::NoEndpoints);
}

#[test]
fn a_connection_goes_on_at_another_node() {
    goes_on_elsewhere::<V4>();
    goes_on_elsewhere::<V6>();
}

/// Ends a connection: FIN both ways, or RST.
fn end<F: TestFamily>(memory: &Memory<F>, client: u8, port: u16, backend: u32, by_reset: bool) {
    if by_reset {
        let _ = memory.decide(true, &OUTSIDE, &segment::<F>(client, port, vip::<F>(), TCP_RST));
        return;
    }
    let local = memory.backends[backend as usize].addr;
    let answer = |tcp_flags| Packet {
        tuple: Tuple { src: local, dst: F::client(client), src_port: 9376, dst_port: port },
        ..segment::<F>(client, port, vip::<F>(), tcp_flags)
    };
    let _ = memory.decide(false, &Env { ifindex: UPLINK, own: false, probe: false }, &answer(TCP_SYN | TCP_ACK));
    for flags in [TCP_ACK, TCP_FIN | TCP_ACK] {
        let _ = memory.decide(true, &OUTSIDE, &segment::<F>(client, port, vip::<F>(), flags));
    }
    let _ = memory.decide(false, &Env { ifindex: UPLINK, own: false, probe: false }, &answer(TCP_FIN | TCP_ACK));
}

fn loads_are_even<F: TestFamily>() {
    for shares in [[1, 1, 1, 1], [1, 2, 3, 4]] {
        let memory = node::<F>(Algorithm::LeastConnections, &shares);
        let flows: Vec<_> = all_clients()
            .take(2000)
            .map(|(client, port)| (client, port, opened(&memory, client, port, vip::<F>())))
            .collect();
        let got = counts(flows.iter().map(|(_, _, backend)| *backend));
        let all: u32 = shares.iter().sum();
        for (got, share) in got.iter().zip(shares) {
            let fair = 2000 * share / all;
            assert!(got.abs_diff(fair) <= 20, "{got} instead of {fair}");
        }
        assert_eq!(memory.loads.borrow().values().sum::<i32>(), 2000);
        for (nth, (client, port, backend)) in flows.iter().enumerate() {
            end(&memory, *client, *port, *backend, nth % 2 == 0);
            // What comes after the end counts for nothing.
            let _ = memory.decide(true, &OUTSIDE, &segment::<F>(*client, *port, vip::<F>(), TCP_RST));
        }
        assert!(memory.loads.borrow().values().all(|load| *load == 0), "{:?}", memory.loads.borrow());
    }
}

#[test]
fn least_connections_levels_and_goes_back_to_zero() {
    loads_are_even::<V4>();
    // Of a remote endpoint the answers carry another tuple; only the opening is looked at here.
    loads_are_even::<V6>();
}

fn busy_ones_are_avoided<F: TestFamily>() {
    let memory = node::<F>(Algorithm::LeastConnections, &[1, 1, 1, 1]);
    memory.loads.borrow_mut().insert(3, 100_000);
    let got = counts(all_clients().take(4000).map(|(client, port)| opened(&memory, client, port, vip::<F>())));
    assert_eq!(got[2], 0, "{got:?}: of two different ones the busy one is never the better");
    // A correction may have known of more ends than were counted.
    memory.loads.borrow_mut().insert(3, -5);
    assert_eq!(proxy_common::lb::Tables::<F>::load(&memory, 3), 0);
}

#[test]
fn a_busy_endpoint_gets_nothing() {
    busy_ones_are_avoided::<V4>();
    busy_ones_are_avoided::<V6>();
}

#[test]
fn sockets_are_counted_once() {
    let memory = node::<V4>(Algorithm::LeastConnections, &[1, 1, 1, 1]);
    for cookie in 0..400 {
        connected(&memory, cookie, 7);
    }
    assert_eq!(memory.loads.borrow().values().sum::<i32>(), 400);
    assert!(memory.loads.borrow().values().all(|load| load.abs_diff(100) <= 8), "{:?}", memory.loads.borrow());
    for _ in 0..50 {
        connected(&memory, 0, 7);
    }
    assert_eq!(memory.loads.borrow().values().sum::<i32>(), 400, "a socket that tries again");
    let request = SockRequest::<V4> { addr: V4::vip(1), port: 80, protocol: UDP, cookie: 1000, netns: 7 };
    assert!(matches!(connect(&memory, &request), SockOutcome::To { .. }));
    assert_eq!(memory.loads.borrow().values().sum::<i32>(), 400, "UDP sockets are not counted");
}

fn remembered_first<F: TestFamily>(algorithm: Algorithm) {
    let mut memory = node::<F>(algorithm, &[3, 3, 3, 3]);
    memory.services.values_mut().for_each(|service| service.affinity_s = 100);
    let first = opened(&memory, 9, 40_000, vip::<F>());
    assert!((1..100).all(|port| opened(&memory, 9, 40_000 + port, vip::<F>()) == first));
    assert!(memory.turns.borrow().values().all(|turns| *turns == 1), "what is remembered takes no turn");
    memory.backends[first as usize].state = BackendState::Free;
    memory.rings.retain(|slot| slot.backend != first);
    memory.sets[1].len = memory.rings.len() as u32;
    let second = opened(&memory, 9, 50_000, vip::<F>());
    assert_ne!(second, first);
    assert_ne!(memory.backends[second as usize].addr, F::Addr::ZERO);
}

#[test]
fn affinity_comes_first() {
    for algorithm in [Algorithm::Random, Algorithm::RoundRobin, Algorithm::MaglevTuple, Algorithm::LeastConnections] {
        remembered_first::<V4>(algorithm);
        remembered_first::<V6>(algorithm);
    }
}
