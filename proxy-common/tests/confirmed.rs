//! When a flow counts as confirmed, and what it keeps then: its place in the tables, and its source port.

mod memory;

use memory::{Memory, POD, TestFamily, UPLINK};
use proxy_common::{
    abi::{Action, EndpointSet, FLOW_UNCONFIRMED, FlowKind, Reason},
    lb::Env,
    net::{Fragment, Packet, TCP, TCP_ACK, TCP_FIN, TCP_SYN, Tuple, V4},
};

fn segment(tuple: Tuple<V4>, tcp_flags: u8) -> Packet<V4> {
    Packet { tuple, protocol: TCP, tcp_flags, fragment: Fragment::Whole, l3_offset: 14, l4_offset: 34, ..Packet::EMPTY }
}

fn inverse(tuple: &Tuple<V4>) -> Tuple<V4> {
    Tuple { src: tuple.dst, dst: tuple.src, src_port: tuple.dst_port, dst_port: tuple.src_port }
}

/// A client outside, and a node whose only endpoint is elsewhere.
struct Remote {
    node: Memory<V4>,
    call: Tuple<V4>,
}

const OUTSIDE: Env = Env { ifindex: UPLINK, own: false, probe: false };

impl Remote {
    fn new() -> Self {
        let mut node = Memory::<V4>::node();
        node.sets[1] = EndpointSet { start: 2, len: 1 };
        let call = Tuple { src: V4::client(1), dst: V4::node(), src_port: 40000, dst_port: 32000 };
        Self { node, call }
    }

    /// What the endpoint sees of a segment, or why it sees nothing.
    fn send(&self, call: Tuple<V4>, tcp_flags: u8) -> Result<Tuple<V4>, Reason> {
        let (_, work) = self.node.decide(true, &OUTSIDE, &segment(call, tcp_flags));
        let (verdict, work) = self.node.decide(false, &OUTSIDE, &segment(work.rewrite.tuple, tcp_flags));
        if verdict.action == Action::Pass { Ok(work.rewrite.tuple) } else { Err(verdict.reason) }
    }

    fn answer(&self, seen: &Tuple<V4>, tcp_flags: u8) -> Tuple<V4> {
        let (_, work) = self.node.decide(true, &OUTSIDE, &segment(inverse(seen), tcp_flags));
        let (_, work) = self.node.decide(false, &OUTSIDE, &segment(work.rewrite.tuple, tcp_flags));
        work.rewrite.tuple
    }

    fn established() -> (Self, Tuple<V4>) {
        let remote = Self::new();
        let seen = remote.send(remote.call, TCP_SYN).expect("a SYN passes");
        assert_eq!(remote.answer(&seen, TCP_SYN | TCP_ACK), inverse(&remote.call));
        assert_eq!(remote.send(remote.call, TCP_ACK), Ok(seen));
        (remote, seen)
    }

    fn confirmed(&self) -> (usize, usize) {
        (self.node.flows.borrow().len(), self.node.snats.borrow().len())
    }
}

#[test]
fn the_clients_answer_confirms() {
    let (remote, _) = Remote::established();
    assert_eq!(remote.confirmed(), (3, 1));
    assert!(remote.node.flows.borrow().values().all(|flow| flow.flags & FLOW_UNCONFIRMED == 0));
    assert!(remote.node.new_flows.borrow().is_empty() && remote.node.new_snats.borrow().is_empty());
}

#[test]
fn a_repeated_syn_is_no_answer() {
    let remote = Remote::new();
    let seen = remote.send(remote.call, TCP_SYN).expect("a SYN passes");
    remote.answer(&seen, TCP_SYN | TCP_ACK);
    for _ in 0..3 {
        assert_eq!(remote.send(remote.call, TCP_SYN), Ok(seen));
        remote.answer(&seen, TCP_SYN | TCP_ACK);
    }
    assert_eq!(remote.confirmed(), (0, 0));
}

#[test]
fn a_fin_before_the_backend_was_heard_is_no_connection() {
    let remote = Remote::new();
    let seen = remote.send(remote.call, TCP_SYN).expect("a SYN passes");
    assert_eq!(remote.send(remote.call, TCP_FIN | TCP_ACK), Ok(seen));
    assert_eq!(remote.send(remote.call, TCP_ACK), Ok(seen));
    assert_eq!(remote.confirmed(), (0, 0));
}

/// Evicts something, lets one packet heal it, and lets others ask for the port a while later.
fn keeps_its_port(evict: impl FnOnce(&Memory<V4>)) {
    let (mut remote, seen) = Remote::established();
    evict(&remote.node);
    remote.node.now_s += 2;
    assert_eq!(remote.send(remote.call, TCP_ACK), Ok(seen));
    remote.node.now_s += 60;
    (remote.node.config.snat_first, remote.node.config.snat_last) = (seen.src_port, seen.src_port + 1);
    for src_port in [50000, 50001] {
        let call = remote.call;
        let other = remote.send(Tuple { src: V4::client(2), src_port, ..call }, TCP_SYN);
        assert_ne!(other.map(|tuple| tuple.src_port), Ok(seen.src_port), "taken away");
    }
    assert_eq!(remote.answer(&seen, TCP_ACK), inverse(&remote.call));
}

#[test]
fn an_evicted_snat_entry_is_made_anew_for_good() {
    keeps_its_port(|node| node.snats.borrow_mut().clear());
}

#[test]
fn an_evicted_source_half_finds_its_port_again() {
    keeps_its_port(|node| node.flows.borrow_mut().retain(|_, flow| flow.kind != FlowKind::Source));
}

#[test]
fn of_two_cpus_one_takes_a_port_over() {
    let (mut remote, seen) = Remote::established();
    for tcp_flags in [TCP_FIN | TCP_ACK, TCP_ACK] {
        remote.answer(&seen, TCP_FIN | TCP_ACK);
        assert_eq!(remote.send(remote.call, tcp_flags), Ok(seen));
    }
    remote.node.now_s += 2;
    (remote.node.config.snat_first, remote.node.config.snat_last) = (seen.src_port, seen.src_port);
    let entry = |remote: &Remote| *remote.node.snats.borrow().values().next().expect("one entry");
    let before = entry(&remote);
    let call = Tuple { src: V4::client(2), ..remote.call };

    remote.node.overtaken = true;
    assert_eq!(remote.send(call, TCP_SYN), Err(Reason::SnatPortsBusy));
    assert_eq!(entry(&remote), before, "the port of the CPU that was first");

    remote.node.overtaken = false;
    assert_eq!(remote.send(call, TCP_SYN), Ok(seen));
    let after = entry(&remote);
    assert_eq!((after.client, after.client_port), (call.src, before.client_port));
    assert_ne!(after.word(), before.word(), "who compares the word must see the new owner");
}

#[test]
fn hairpin_connections_give_their_ports_back() {
    let mut node = Memory::<V4>::node();
    node.sets[1] = EndpointSet { start: 0, len: 1 };
    (node.config.snat_first, node.config.snat_last) = (61000, 61063);
    let env = Env { ifindex: POD, own: false, probe: false };
    for number in 0..500 {
        // Several within a second: nothing is looked after only because time passes.
        node.now_s += u32::from(number % 10 == 0);
        let call = Tuple { src: V4::pod(10), dst: V4::vip(1), src_port: 30000 + number, dst_port: 80 };
        let (verdict, work) = node.decide(true, &env, &segment(call, TCP_SYN));
        assert_eq!(verdict.reason, Reason::HairpinForward, "connection {number}");
        let answers = inverse(&work.rewrite.tuple);
        for (tuple, tcp_flags) in [
            (answers, TCP_SYN | TCP_ACK),
            (call, TCP_ACK),
            (call, TCP_FIN | TCP_ACK),
            (answers, TCP_FIN | TCP_ACK),
            (call, TCP_ACK),
        ] {
            let (verdict, _) = node.decide(true, &env, &segment(tuple, tcp_flags));
            assert_eq!(verdict.action, Action::Redirect, "connection {number}: {verdict:?}");
        }
    }
}

/// While the tables move to another layout, what is not in them may be in those that are not read.
#[test]
fn a_miss_drops_while_the_tables_move() {
    let (mut remote, seen) = Remote::established();
    remote.node.migrating = true;
    assert_eq!(remote.send(remote.call, TCP_ACK), Ok(seen), "what is known goes on");
    let unknown = Tuple { src_port: 40001, ..remote.call };
    for flags in [TCP_SYN, TCP_ACK, TCP_FIN | TCP_ACK] {
        let (verdict, _) = remote.node.decide(true, &OUTSIDE, &segment(unknown, flags));
        assert_eq!((verdict.action, verdict.reason), (Action::Drop, Reason::Migrating));
    }
    // The node's own ports are no affair of ours.
    let ssh = Tuple { dst_port: 22, ..unknown };
    for flags in [TCP_SYN, TCP_ACK] {
        assert_eq!(remote.node.decide(true, &OUTSIDE, &segment(ssh, flags)).0.action, Action::Pass);
    }
    remote.node.migrating = false;
    assert_eq!(remote.send(unknown, TCP_SYN).map(|seen| seen.dst), Ok(V4::remote_pod(20)));
}
