//! How often a search for a source port fails when one endpoint's ports are almost all taken. The window of 64 ports and the
//! way it is walked are chosen by this table, which docs/maps.md shows.

mod memory;

use memory::{Memory, TestFamily, UPLINK};
use proxy_common::{
    abi::{Action, EndpointSet, FlowKey, Reason},
    lb::Env,
    net::{Fragment, Packet, TCP, TCP_SYN, Tuple, V4, V6},
};

/// In percent of the range.
const FILLS: [usize; 5] = [50, 80, 90, 95, 99];
/// New flows tried at each fill.
const TRIES: usize = 20_000;

/// A sequence that is the same in each run (splitmix64).
struct Sequence(u64);

impl Sequence {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let state = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ (state >> 31)
    }
}

/// Opens a connection of a client never seen before to a NodePort with one remote endpoint. Returns the key of its SNAT entry;
/// none if no source port was found.
fn open<F: TestFamily>(node: &Memory<F>, sequence: &mut Sequence) -> Option<FlowKey<F>> {
    let random = sequence.next();
    let client = F::client(random as u8);
    let tuple = Tuple { src: client, dst: F::node(), src_port: (random >> 8) as u16 | 1024, dst_port: 32000 };
    let mut packet = Packet {
        tuple,
        protocol: TCP,
        tcp_flags: TCP_SYN,
        fragment: Fragment::Whole,
        icmp_error: false,
        datagram_id: 0,
        l3_offset: 14,
        l4_offset: 34,
    };
    let env = Env { ifindex: UPLINK, own: false, probe: false };
    let (verdict, work) = node.decide(true, &env, &packet);
    assert_eq!(verdict.action, Action::Pass, "{verdict:?}");
    packet.tuple = work.rewrite.tuple;
    let (verdict, work) = node.decide(false, &env, &packet);
    // The search alone is measured.
    node.new_flows.borrow_mut().clear();
    let new = work.rewrite.tuple;
    match (verdict.action, verdict.reason) {
        (Action::Pass, Reason::Snat) => Some(FlowKey::new(new.dst, new.dst_port, new.src, new.src_port, TCP)),
        (Action::Drop, Reason::SnatPortsBusy) => None,
        other => panic!("{other:?}"),
    }
}

/// Failed searches among `TRIES`, at each fill.
fn measure<F: TestFamily>() -> [usize; FILLS.len()] {
    let mut node = Memory::<F>::node();
    // The only endpoint is a pod of another node.
    node.sets[1] = EndpointSet { start: 2, len: 1 };
    let ports = usize::from(node.config.snat_last - node.config.snat_first) + 1;
    let mut sequence = Sequence(20);
    FILLS.map(|fill| {
        while node.new_snats.borrow().len() < ports * fill / 100 {
            open(&node, &mut sequence);
        }
        let failed = (0..TRIES).filter(|_| match open(&node, &mut sequence) {
            Some(key) => node.new_snats.borrow_mut().remove(&key).is_none(),
            None => true,
        });
        failed.count()
    })
}

#[test]
fn failed_searches_by_fill() {
    let (v4, v6) = (measure::<V4>(), measure::<V6>());
    println!("| ports taken | failed, IPv4 | failed, IPv6 |\n|---|---|---|");
    let percent = |failed: usize| 100.0 * failed as f64 / TRIES as f64;
    for (place, fill) in FILLS.iter().enumerate() {
        println!("| {fill} % | {:.2} % | {:.2} % |", percent(v4[place]), percent(v6[place]));
    }
    for failed in [v4[2], v6[2]] {
        assert!(percent(failed) < 1.0, "{failed} of {TRIES} searches failed at {} %", FILLS[2]);
    }
}
