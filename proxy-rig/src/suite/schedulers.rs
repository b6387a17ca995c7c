//! Schedulers with the real maps: many new connections through tc_ingress, and what is counted of them. Called by `suite kernel`; what
//! single packets do is in scenarios, the statistics of each algorithm beside the decision code.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use proxy_agent::{
    dataplane::{Written, correct_loads},
    loader::Capacities,
};
use proxy_common::abi::names;
use serde_json::{Value, json};

use super::root_trial;
use crate::scenario::{
    Hook, Hop, KernelMachine, Machine, NodeSpec, ObjectReader, PacketSpec, Place, SimulatedNode, TCX_NEXT, build,
    in_private_netns,
};

const FLOWS: u32 = 100_000;
const ENDPOINTS: usize = 4;
/// Offsets in an IPv4 frame without options.
const SRC: usize = 26;
const SRC_PORT: usize = 34;

pub(super) fn tests() -> Vec<Trial> {
    vec![
        root_trial("loads_are_zero_after_a_hundred_thousand_evicted_flows", || with_machine("lc", loads)),
        root_trial("round_robin_is_exact_from_two_threads", || with_machine("rr", turns)),
    ]
}

fn with_machine(algorithm: &'static str, test: fn(&KernelMachine, u32) -> Result<()>) -> Result<()> {
    let node = SimulatedNode::new(&NodeSpec::default())?;
    in_private_netns(&node, || {
        let capacities = Capacities { conntrack: 8192, new_flows: 8192, ..Capacities::default() };
        let mut machine = KernelMachine::with_real_clock(node.clone(), capacities)?;
        let mut reader = ObjectReader::default();
        let mut events = Vec::new();
        objects(algorithm).into_iter().try_for_each(|object| reader.object(object, &mut events))?;
        events.extend(reader.node_events(&NodeSpec::default())?);
        machine.program(&events)?;
        let ifindex = machine.index_of("pod2")?;
        test(&machine, ifindex)
    })
}

fn objects(algorithm: &str) -> [Value; 2] {
    let endpoint = |last: usize| json!({"addresses": [format!("10.244.2.{last}")], "nodeName": "node-b"});
    let service = json!({
        "kind": "Service", "metadata": {"name": "web", "annotations": {"weir.dev/algorithm": algorithm}},
        "spec": {"clusterIP": "10.96.0.20", "ports": [{"name": "http", "port": 80}]},
    });
    let slice = json!({
        "kind": "EndpointSlice", "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
        "endpoints": (20..20 + ENDPOINTS).map(endpoint).collect::<Vec<_>>(),
    });
    [service, slice]
}

/// The `nth` of many connections.
fn open(machine: &KernelMachine, hop: &mut Hop, ifindex: u32, nth: u32) -> Result<()> {
    let [host, port] = [(nth >> 15) as u16, 1024 + (nth & 0x7fff) as u16];
    hop.frame[SRC + 2..SRC + 4].copy_from_slice(&host.to_be_bytes());
    hop.frame[SRC_PORT..SRC_PORT + 2].copy_from_slice(&port.to_be_bytes());
    let (returned, _) = machine.test_run(hop, ifindex)?;
    ensure!(returned == TCX_NEXT, "connection {nth}: the program returned {returned}");
    Ok(())
}

fn first_hop() -> Result<Hop> {
    let packet: PacketSpec = "tcp 198.18.0.0:1024 > 10.96.0.20:80 syn".parse()?;
    let place = Place { interface: "pod2".to_owned(), hook: Hook::Ingress, own: false };
    Ok(Hop::bare(place, build(&packet)))
}

fn read_loads(machine: &KernelMachine) -> Result<BTreeMap<u32, u32>> {
    machine.read_used(names::LOADS_V4, machine.actual().v4.backends.len())
}

fn loads(machine: &KernelMachine, ifindex: u32) -> Result<()> {
    let mut hop = first_hop()?;
    (0..FLOWS).try_for_each(|nth| open(machine, &mut hop, ifindex, nth))?;
    let counted = read_loads(machine)?;
    let (least, most) = (counted.values().min().context("no load")?, counted.values().max().context("no load")?);
    println!("{FLOWS} connections: {counted:?}");
    ensure!(counted.len() == ENDPOINTS && counted.values().sum::<u32>() == FLOWS, "counted {counted:?}");
    ensure!(most - least <= 100, "not level: {counted:?}");

    let now_s = proxy_agent::node::seconds_since_boot();
    let correct = |before: &Written, now_s| correct_loads(Path::new(machine.pins()), &machine.counted(), before, now_s);
    let written = correct(&Written::default(), now_s)?;
    let corrected = read_loads(machine)?;
    let left: u32 = corrected.values().sum();
    println!("after a correction: {corrected:?}");
    ensure!(left > 0 && left <= 8192, "the table of new flows holds 8192 entries, {corrected:?} are counted");

    correct(&written, now_s + 1000)?;
    let corrected = read_loads(machine)?;
    ensure!(corrected.is_empty(), "nobody answered for 1000 seconds: {corrected:?}");
    Ok(())
}

fn turns(machine: &KernelMachine, ifindex: u32) -> Result<()> {
    // Few enough that none is evicted: each has two entries.
    const EACH: u32 = 400;
    std::thread::scope(|scope| {
        let send = |first: u32| {
            scope.spawn(move || {
                let mut hop = first_hop()?;
                (first..first + EACH).try_for_each(|nth| open(machine, &mut hop, ifindex, nth))
            })
        };
        let threads = [send(0), send(EACH)];
        threads.into_iter().try_for_each(|thread| thread.join().expect("invariant: the thread does not panic"))
    })?;
    let mut chosen: BTreeMap<u32, u32> = BTreeMap::new();
    machine.forward_flows()?.into_iter().for_each(|backend| *chosen.entry(backend).or_default() += 1);
    let fair = 2 * EACH / ENDPOINTS as u32;
    ensure!(chosen.len() == ENDPOINTS && chosen.values().all(|count| *count == fair), "{fair} each, got {chosen:?}");
    Ok(())
}
