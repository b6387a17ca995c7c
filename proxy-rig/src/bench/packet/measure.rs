//! One line of the table: programs the node, makes the flows, and times the program beside the floor and an empty one.
//! Called by `packet::run` in a network namespace of its own.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
};
use proxy_agent::{dataplane::MapFamily, loader::Capacities};
use proxy_common::{
    abi::{FlowKey, FlowState, Reason, ServiceKey, SnatEntry, capacity, names},
    bench::{FLOOR_STEPS, FloorFlow},
    net::{TCP, UDP, V4, V6},
};

use super::{
    case::{Case, Flows, MANY},
    probe::{FloorMaps, Object, Probe, Target},
    traffic::{Leg, Order, Protocol, Traffic, Version, objects},
};
use crate::scenario::{Hook, KernelMachine, Machine, SimulatedNode, skb_context};

/// Packets of one run over known flows.
const REPEAT: u32 = 4 * MANY;
/// Packets of one run over fresh flows: all runs together must find room in the tables.
const FRESH: u32 = 4096;
/// Flows that are made at once: they must find room where flows stand that are not answered yet.
const BATCH: u32 = 8192;
/// Fresh flows enough to fill the tables of new flows several times over.
const FILL: u32 = 2 * capacity::NEW_FLOWS as u32;

const WHOLE_FLOOR: u32 = FLOOR_STEPS.len() as u32 - 1;

/// The runs of one case: mean nanoseconds of a packet, driver and test run included.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub(super) struct Times {
    pub(super) nothing: Vec<u32>,
    pub(super) floor: Vec<u32>,
    pub(super) program: Vec<u32>,
}

struct Bench<'a> {
    object: &'a Object,
    case: &'a Case,
    machine: KernelMachine,
}

pub(super) fn measure(object: &Object, node: &SimulatedNode, case: &Case, runs: u32) -> Result<Times> {
    let default = Capacities::default();
    let capacities = match case.flows {
        // Room for all runs.
        Flows::Fresh => Capacities { new_flows: default.conntrack, new_snat: default.snat, ..default },
        _ => default,
    };
    let mut machine = KernelMachine::with_real_clock(node.clone(), capacities)?;
    machine.program(&objects(node.spec(), case.version)?)?;
    let bench = Bench { object, case, machine };
    bench.make_flows()?;
    let mut floor = bench.floor(WHOLE_FLOOR)?;
    let mut nothing = bench.probe(Target::Nothing)?;
    let mut program = bench.probe(bench.target(case.measured.hook())?)?;
    let mut before_each = match case.before_each {
        Some(leg) => Some((bench.traffic(leg)?, bench.probe(bench.target(leg.hook())?)?)),
        None => None,
    };
    let traffic = bench.traffic(case.measured)?;
    let forward = Leg::Forward.traffic(case.version, Protocol::Tcp)?;
    let (order, repeat) = match case.flows {
        Flows::One => (Order::Among(1), REPEAT),
        Flows::Many => (Order::Among(MANY), REPEAT),
        Flows::Fresh => (Order::Once(0), FRESH),
        Flows::FreshInFullTable => (Order::Once(FILL), FRESH),
    };
    let floor_order = if case.flows == Flows::Many { order } else { Order::Among(1) };
    nothing.aim(&traffic.driver(order))?;
    program.aim(&traffic.driver(order))?;
    floor.aim(&forward.driver(floor_order))?;
    if let Some((traffic, probe)) = &mut before_each {
        probe.aim(&traffic.driver(order))?;
    }
    let mut times = Times::default();
    // The first round warms up.
    for round in 0..=runs {
        if let Some((traffic, probe)) = &before_each {
            bench.counted(probe, traffic, FRESH)?;
        }
        let took = [
            bench.time(&nothing, &traffic, repeat)?,
            bench.time(&floor, &forward, REPEAT)?,
            bench.counted(&program, &traffic, repeat)?,
        ];
        if round > 0 {
            let [nothing, floor, program] = took.map(|took| took.as_nanos() as u32);
            times.nothing.push(nothing);
            times.floor.push(floor);
            times.program.push(program);
        }
    }
    Ok(times)
}

/// Nanoseconds of each step of the floor program, over one flow: quickest run up to it less quickest run up to the one before.
pub(super) fn floor_steps(object: &Object, node: &SimulatedNode, version: Version, runs: u32) -> Result<Vec<i64>> {
    let case = Case::of_floor(version);
    let machine = KernelMachine::with_real_clock(node.clone(), Capacities::default())?;
    let bench = Bench { object, case: &case, machine };
    let traffic = bench.traffic(Leg::Forward)?;
    let mut probes = vec![bench.probe(Target::Nothing)?];
    for last_step in 0..=WHOLE_FLOOR {
        probes.push(bench.floor(last_step)?);
    }
    for probe in &mut probes {
        probe.aim(&traffic.driver(Order::Among(1)))?;
    }
    let mut quickest = vec![i64::MAX; probes.len()];
    for _ in 0..=runs {
        for (probe, quickest) in probes.iter().zip(&mut quickest) {
            *quickest = (*quickest).min(bench.time(probe, &traffic, REPEAT)?.as_nanos() as i64);
        }
    }
    Ok(quickest.windows(2).map(|pair| pair[1] - pair[0]).collect())
}

impl Bench<'_> {
    fn traffic(&self, leg: Leg) -> Result<Traffic> {
        leg.traffic(self.case.version, self.case.protocol)
    }

    fn target(&self, hook: Hook) -> Result<Target> {
        let name = if hook == Hook::Ingress { "tc_ingress" } else { "tc_egress" };
        Ok(Target::Program(self.machine.program_fd(name)?))
    }

    fn probe(&self, target: Target) -> Result<Probe> {
        Probe::new(self.object, self.case.version, target)
    }

    fn time(&self, probe: &Probe, traffic: &Traffic, repeat: u32) -> Result<Duration> {
        let ifindex = self.machine.index_of(&traffic.place.interface)?;
        probe.run(&traffic.frame, &skb_context(&traffic.place, ifindex), repeat)
    }

    /// The same, of one of the product's programs: each packet must have got the verdict that was to be measured.
    fn counted(&self, probe: &Probe, traffic: &Traffic, repeat: u32) -> Result<Duration> {
        let before = self.machine.counters()?;
        let took = self.time(probe, traffic, repeat)?;
        let after = self.machine.counters()?;
        let counted = |reason: Reason| after[reason as usize] - before[reason as usize];
        let others: Vec<_> = Reason::ALL
            .iter()
            .filter(|reason| **reason != traffic.reason && counted(**reason) > 0)
            .map(|reason| format!("{} {}", counted(*reason), reason.name()))
            .collect();
        let expected = traffic.reason.name();
        ensure!(others.is_empty(), "expected {repeat} packets {expected}, got {}", others.join(", "));
        ensure!(counted(traffic.reason) == u64::from(repeat), "not each packet was counted as {expected}");
        Ok(took)
    }

    /// What must be in the tables beforehand.
    fn make_flows(&self) -> Result<()> {
        let flows = if self.case.flows == Flows::Many { MANY } else { 1 };
        let opening = [self.case.before_each.unwrap_or(self.case.measured)];
        let (legs, flows): (&[Leg], u32) = match self.case.flows {
            Flows::Fresh => return Ok(()),
            Flows::FreshInFullTable => (&opening, FILL),
            Flows::One | Flows::Many => (self.case.before, flows),
        };
        let mut probes = Vec::new();
        for leg in legs {
            probes.push((*leg, self.traffic(*leg)?, self.probe(self.target(leg.hook())?)?));
        }
        for first in (0..flows).step_by(BATCH as usize) {
            for (leg, traffic, probe) in &mut probes {
                probe.aim(&traffic.driver(Order::Once(first)))?;
                let packets = BATCH.min(flows - first);
                self.counted(probe, traffic, packets).with_context(|| format!("{leg:?}"))?;
                if *leg == Leg::OpenOut {
                    self.by_version(Bench::answer_snat::<V4>, Bench::answer_snat::<V6>)?;
                }
            }
        }
        if self.case.measured == Leg::SnatReply {
            let put = |bench: &Self| bench.put_snat::<V4>(names::SNAT_V4, flows);
            self.by_version(put, |bench| bench.put_snat::<V6>(names::SNAT_V6, flows))?;
        }
        Ok(())
    }

    fn by_version(&self, v4: impl Fn(&Self) -> Result<()>, v6: impl Fn(&Self) -> Result<()>) -> Result<()> {
        if self.case.version == Version::V4 { v4(self) } else { v6(self) }
    }

    /// The endpoints' answers to our source ports, which lie where Weir chose them: told to the table, not sent.
    fn answer_snat<F: MapFamily>(&self) -> Result<()>
    where
        FlowKey<F>: Pod,
        SnatEntry<F>: Pod,
    {
        let name = if F::VERSION == 4 { names::NEW_SNAT_V4 } else { names::NEW_SNAT_V6 };
        let mut table = self.snat_table::<F>(name)?;
        let entries = table.iter().collect::<Result<Vec<_>, _>>().context(name)?;
        for (key, entry) in entries {
            table.insert(key, SnatEntry { state: FlowState::Established, ..entry }, 0).context(name)?;
        }
        Ok(())
    }

    /// Entries for the replies to `flows` connections.
    fn put_snat<F: MapFamily>(&self, map: &str, flows: u32) -> Result<()>
    where
        FlowKey<F>: Pod,
        SnatEntry<F>: Pod,
    {
        let (replies, clients) = (self.traffic(Leg::SnatReply)?, self.traffic(Leg::Source)?);
        let mut table = self.snat_table::<F>(map)?;
        for flow in 0..flows {
            let key = key::<F>(&replies, self.case.protocol, flow)?;
            let client = clients.tuple(flow).src;
            let entry = SnatEntry {
                client: F::from_ip(client.ip()).context("an address of another family")?,
                client_port: client.port(),
                state: FlowState::Established,
                flags: 0,
                last_seen_s: 0,
                check: key.check(),
            };
            table.insert(key, entry, 0).context(map.to_owned())?;
        }
        Ok(())
    }

    /// Writable: the machine's own handles are for reading.
    fn snat_table<F: MapFamily>(&self, name: &str) -> Result<HashMap<MapData, FlowKey<F>, SnatEntry<F>>>
    where
        FlowKey<F>: Pod,
        SnatEntry<F>: Pod,
    {
        let Map::LruHashMap(data) = self.machine.map(name)? else { bail!("{name} is no LRU map") };
        let data = MapData::from_id(data.info()?.id())?;
        Ok(Map::from_map_data(data)?.try_into()?)
    }

    /// The floor always carries packets to the ClusterIP.
    fn floor(&self, last_step: u32) -> Result<Probe> {
        let mut probe = self.probe(Target::Floor { last_step })?;
        let forward = Leg::Forward.traffic(self.case.version, Protocol::Tcp)?;
        let flows = if self.case.flows == Flows::Many { MANY } else { 1 };
        match self.case.version {
            Version::V4 => fill::<V4>(&mut probe, &forward, flows)?,
            Version::V6 => fill::<V6>(&mut probe, &forward, flows)?,
        }
        probe.aim(&forward.driver(Order::Among(1)))?;
        let ifindex = self.machine.index_of(&forward.place.interface)?;
        let next = u32::MAX;
        probe.check(&forward.frame, &skb_context(&forward.place, ifindex), next).context("the floor")?;
        Ok(probe)
    }
}

fn fill<F: MapFamily + FloorMaps>(probe: &mut Probe, traffic: &Traffic, flows: u32) -> Result<()>
where
    FlowKey<F>: Pod,
    FloorFlow<F>: Pod,
    ServiceKey<F>: Pod,
{
    let keys = (0..flows).map(|flow| key::<F>(traffic, Protocol::Tcp, flow)).collect::<Result<Vec<_>>>()?;
    probe.fill_floor(keys.into_iter())
}

fn key<F: MapFamily>(traffic: &Traffic, protocol: Protocol, flow: u32) -> Result<FlowKey<F>> {
    let tuple = traffic.tuple(flow);
    let address = |ip| F::from_ip(ip).context("an address of another family");
    let (src, dst) = (address(tuple.src.ip())?, address(tuple.dst.ip())?);
    let number = if protocol == Protocol::Tcp { TCP } else { UDP };
    Ok(FlowKey::new(src, tuple.src.port(), dst, tuple.dst.port(), number))
}
