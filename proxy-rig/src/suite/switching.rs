//! Endpoint sets that are switched on one CPU while packets read them on another. Each packet must go to an endpoint of a set
//! that stood while it ran; anything else is a mixture. Called by `suite kernel`.
//!
//! There are two Services. Their n-th set has endpoints of group `n % GROUPS` alone, of changing number, and an endpoint's address
//! names Service and group: so the packet that comes out tells which set was read.

mod reader;
mod writer;

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use libtest_mimic::Trial;
use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};
use proxy_agent::{loader::Capacities, model::Event};
use proxy_common::abi::Reason;
use serde_json::{Value, json};

use super::root_trial;
use crate::scenario::{KernelMachine, Machine, NodeSpec, ObjectReader, SimulatedNode, in_private_netns};
use reader::{Reader, Seen};
use writer::{SetWriter, program_switches};

/// Through the store that the reconciler uses.
const SWITCHES: u64 = 1_000_000;
/// By the agent's whole way from objects to maps.
const RECONCILED_SWITCHES: u64 = 20_000;
const SERVICES: [&str; 2] = ["a", "b"];
const VIPS: [[u8; 4]; 2] = [[10, 96, 0, 20], [10, 96, 0, 21]];
const GROUPS: u64 = 64;
const MEMBERS: u64 = 4;

pub(super) fn tests() -> Vec<Trial> {
    let tests = vec![
        root_trial("a_million_switches_of_endpoint_sets", || with_machine(Capacities::default(), million)),
        root_trial("switches_of_the_reconciler_and_reuse_of_ranges", || {
            // So few that ranges are used again and again, and so many that each can rest.
            with_machine(Capacities { rings: 16_384, ..Capacities::default() }, reconciled)
        }),
    ];
    let single = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() < 2);
    if !single {
        return tests;
    }
    tests.into_iter().map(|test| test.with_kind("needs two CPUs").with_ignored_flag(true)).collect()
}

/// How many sets of each Service were announced, and how many stand.
#[derive(Default)]
struct Progress {
    announced: [AtomicU64; 2],
    done: [AtomicU64; 2],
    ended: AtomicBool,
}

fn with_machine(capacities: Capacities, test: fn(&KernelMachine) -> Result<()>) -> Result<()> {
    let node = SimulatedNode::new(&NodeSpec::default())?;
    in_private_netns(&node, || {
        let mut machine = KernelMachine::with_real_clock(node.clone(), capacities)?;
        machine.program(&first_events(&mut ObjectReader::default())?)?;
        test(&machine)
    })
}

/// The node and both Services, with all endpoints that are ever to be in a set.
fn first_events(reader: &mut ObjectReader) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    for service in 0..SERVICES.len() {
        reader.object(service_object(service), &mut events)?;
        reader.object(slice(service, &(0..GROUPS).flat_map(members_of).collect::<Vec<_>>()), &mut events)?;
    }
    events.extend(reader.node_events(&NodeSpec::default())?);
    Ok(events)
}

fn million(machine: &KernelMachine) -> Result<()> {
    let mut writer = SetWriter::new(machine)?;
    let seen = read_while(machine, |progress| writer.switch(progress, SWITCHES))?;
    seen.report("switches of the store", SWITCHES);
    overtaken(machine, &mut writer)
}

fn reconciled(machine: &KernelMachine) -> Result<()> {
    let mut control = machine.second_control()?;
    let seen = read_while(machine, |progress| program_switches(&mut control, progress, RECONCILED_SWITCHES))?;
    seen.report("switches of the reconciler", RECONCILED_SWITCHES);
    Ok(())
}

/// Reads on this CPU as long as `write` works on another.
fn read_while(machine: &KernelMachine, write: impl FnOnce(&Progress) -> Result<()> + Send) -> Result<Seen> {
    let progress = Progress::default();
    let here = sched_getcpu().context("sched_getcpu")?;
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let written = leave_cpu(here).and_then(|()| write(&progress));
            progress.ended.store(true, Ordering::Release);
            written
        });
        let seen = Reader::new(machine)?.run(&progress);
        // A reader that found something wrong must not wait for the rest.
        progress.ended.store(true, Ordering::Release);
        writer.join().map_err(|_| anyhow!("the writer panicked"))??;
        seen
    })
}

/// To any other CPU that this process may use.
fn leave_cpu(here: usize) -> Result<()> {
    for cpu in (0..CpuSet::count()).filter(|cpu| *cpu != here) {
        let mut only = CpuSet::new();
        only.set(cpu)?;
        if sched_setaffinity(Pid::from_raw(0), &only).is_ok() {
            return Ok(());
        }
    }
    Err(anyhow!("this test needs two CPUs"))
}

/// What a reader sees that was overtaken: the word of its set names slots that another set has by now. It must notice.
fn overtaken(machine: &KernelMachine, writer: &mut SetWriter) -> Result<()> {
    writer.point_first_at_second()?;
    let mut reader = Reader::new(machine)?;
    let before = machine.counters()?;
    for _ in 0..64 {
        let endpoint = reader.send(0)?;
        ensure!(endpoint.is_none(), "a packet to {} went to {endpoint:?}", SERVICES[0]);
    }
    let stale = Reason::StaleRing as usize;
    ensure!(machine.counters()?[stale] == before[stale] + 64, "not each packet was dropped as stale");
    Ok(())
}

/// 10.(100 + service).group.member
fn endpoint(service: usize, group: u64, member: u64) -> [u8; 4] {
    [10, 100 + service as u8, group as u8, member as u8]
}

fn members_of(group: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..MEMBERS).map(move |member| (group, member))
}

/// Group and member of the endpoints of the n-th set: one to four of them.
fn nth_set(n: u64) -> Vec<(u64, u64)> {
    members_of(n % GROUPS).take(1 + (n * 3 % MEMBERS) as usize).collect()
}

fn service_object(service: usize) -> Value {
    let [a, b, c, d] = VIPS[service];
    let vip = format!("{a}.{b}.{c}.{d}");
    json!({
        "kind": "Service", "metadata": {"name": SERVICES[service]},
        "spec": {"clusterIP": vip, "clusterIPs": [vip], "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}]},
    })
}

fn slice(service: usize, endpoints: &[(u64, u64)]) -> Value {
    let name = SERVICES[service];
    let addresses = endpoints.iter().map(|(group, member)| {
        let [a, b, c, d] = endpoint(service, *group, *member);
        json!({"addresses": [format!("{a}.{b}.{c}.{d}")], "nodeName": "node-b", "conditions": {"ready": true}})
    });
    json!({
        "kind": "EndpointSlice",
        "metadata": {"name": format!("{name}-1"), "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": addresses.collect::<Vec<_>>(),
    })
}
