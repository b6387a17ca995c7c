//! The executor over the loaded kernel programs: the same reconciler writes into real maps, and packets go through tc_ingress
//! and tc_egress by BPF_PROG_TEST_RUN. Nothing is attached.

use std::{collections::BTreeMap, net::UdpSocket, path::Path};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, PerCpuArray},
    programs::{ProgramFd, SchedClassifier, TestRun, TestRunOptions},
};
use proxy_agent::{
    dataplane::{Actual, Counted, KernelMaps, frontends_in_use},
    loader::Capacities,
    model::Event,
};
use proxy_common::{
    abi::{Action, Config, Flow, FlowKey, FlowKind, FragEntry, FragKey, REASON_SLOTS, SnatEntry, VerdictRecord, names},
    net::{ETH_LEN, Family as _, IPV4_MIN_LEN, IPV6_LEN, V4, V6},
};

use super::{
    control::Control,
    evict::Eviction,
    expect::Outcome,
    flows::flows_text,
    frame::ether_type,
    hop::{Hook, Hop, Place},
    model::backend_in_words,
    node::SimulatedNode,
    programs::Programs,
    run::Machine,
    sandbox::change_address,
    tables::{Flows, FlowsOf, RigFamily},
};

const PIN_DIR: &str = "/sys/fs/bpf/weir-scenario";
/// Entries per map of the agent; all of them are read after each step.
const SMALL: u32 = 512;
/// Room for some Maglev tables of scenarios slots.
const RINGS: u32 = 32_768;
/// Entries per LRU map: each CPU takes them in batches, and a scenario must not lose any.
const LRU: u32 = 8192;
/// Room for an ICMP error in front of a packet.
const GROWTH: usize = 128;
// What a tc program returns.
pub(crate) const TCX_NEXT: u32 = u32::MAX;
pub(super) const TC_ACT_SHOT: u32 = 2;
pub(super) const TC_ACT_REDIRECT: u32 = 7;
/// Offsets in `struct __sk_buff` (include/uapi/linux/bpf.h).
const SKB_INGRESS_IFINDEX: usize = 36;
const SKB_IFINDEX: usize = 40;
const SKB_LEN: usize = 44;
/// Some interface that a forwarded packet came in by.
const CAME_IN_BY: u32 = 1;

/// Must live on a thread of [`super::in_private_netns`].
pub struct KernelMachine {
    pub(super) node: SimulatedNode,
    pub(super) control: Control<KernelMaps>,
    pub(super) ebpf: Programs,
    now_ns: u64,
    /// Connected sockets of the node, open as long as the machine lives.
    _sockets: Vec<UdpSocket>,
}

impl KernelMachine {
    pub fn new(node: SimulatedNode) -> Result<Self> {
        let config = node.config();
        let capacities = Capacities {
            conntrack: LRU,
            new_flows: LRU,
            snat: LRU,
            new_snat: LRU,
            frags: LRU,
            affinity: LRU,
            sockets: LRU,
            ..small()
        };
        Self::with(node, config, capacities)
    }

    /// For measurements: maps of the sizes wanted, and the machine's own clock.
    pub(crate) fn with_real_clock(node: SimulatedNode, capacities: Capacities) -> Result<Self> {
        let config = Config { fixed_now_ns: 0, ..node.config() };
        Self::with(node, config, capacities)
    }

    fn with(node: SimulatedNode, config: Config, capacities: Capacities) -> Result<Self> {
        let ebpf = Programs::lend(&config, &capacities, Path::new(PIN_DIR))?;
        let control = Control::new(&node, KernelMaps::from_pins(Path::new(PIN_DIR))?)?;
        let mut sockets = Vec::new();
        for socket in &node.spec().udp_sockets {
            let open = UdpSocket::bind(socket.local).with_context(|| format!("UDP socket on {}", socket.local))?;
            open.connect(socket.remote).with_context(|| format!("UDP socket to {}", socket.remote))?;
            sockets.push(open);
        }
        let mut machine = Self { node, control, ebpf, now_ns: config.fixed_now_ns, _sockets: sockets };
        machine.refill_error_budget()?;
        Ok(machine)
    }

    /// One run of a hook: what it returned, and the packet afterwards.
    pub(crate) fn test_run(&self, hop: &Hop, ifindex: u32) -> Result<(u32, Vec<u8>)> {
        let name = if hop.place.hook == Hook::Ingress { "tc_ingress" } else { "tc_egress" };
        let program: &SchedClassifier = self.ebpf.program(name).with_context(|| name)?.try_into()?;
        let context = skb_context(&hop.place, ifindex);
        let mut frame = vec![0; hop.frame.len() + GROWTH];
        let options = TestRunOptions {
            data_in: Some(&hop.frame),
            data_out: Some(&mut frame),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let result = program.test_run(options).with_context(|| format!("BPF_PROG_TEST_RUN of {name}"))?;
        frame.truncate(result.data_size_out as usize);
        Ok((result.return_value, frame))
    }

    /// A loaded program, to be called by another.
    pub(crate) fn program_fd(&self, name: &str) -> Result<ProgramFd> {
        let program: &SchedClassifier = self.ebpf.program(name).with_context(|| name.to_owned())?.try_into()?;
        Ok(program.fd()?.try_clone()?)
    }

    /// What the reconciler wrote.
    pub(crate) fn actual(&self) -> &Actual {
        self.control.actual()
    }

    /// The same maps once more, to be written beside the machine's own reconciler.
    pub(crate) fn second_dataplane(&self) -> Result<KernelMaps> {
        Ok(KernelMaps::from_pins(Path::new(PIN_DIR))?)
    }

    /// Another agent's code on the same maps, as after a restart.
    pub(crate) fn second_control(&self) -> Result<Control<KernelMaps>> {
        Control::new(&self.node, self.second_dataplane()?)
    }

    pub(crate) fn index_of(&self, interface: &str) -> Result<u32> {
        self.node.index_of(interface).with_context(|| format!("interface {interface}"))
    }

    pub(crate) fn verdict(&self) -> Result<VerdictRecord> {
        let records: PerCpuArray<_, VerdictRecord> = self.map(names::VERDICT)?.try_into()?;
        let cpu = nix::sched::sched_getcpu().context("sched_getcpu")?;
        records.get(&0, 0)?.get(cpu).copied().context("no verdict record of this CPU")
    }

    pub(crate) fn counters(&self) -> Result<[u64; REASON_SLOTS]> {
        let per_cpu: PerCpuArray<_, u64> = self.map(names::COUNTERS)?.try_into()?;
        let mut counters = [0; REASON_SLOTS];
        for (reason, counter) in (0u32..).zip(&mut counters) {
            *counter = per_cpu.get(&reason, 0)?.iter().sum();
        }
        Ok(counters)
    }

    pub(crate) fn map(&self, name: &str) -> Result<&Map> {
        self.ebpf.map(name).with_context(|| format!("no map {name}"))
    }

    /// The connection tables as they are now.
    pub(super) fn read_all_flows(&self) -> Result<Flows> {
        let flows = Flows {
            v4: self.read_flows::<V4>(&FLOW_MAPS_V4)?,
            v6: self.read_flows::<V6>(&FLOW_MAPS_V6)?,
            cursors: self.read_used(names::CURSORS, self.actual().sets.len())?.into(),
            ..Flows::default()
        };
        let affinity: HashMap<&MapData, _, _> = self.map(names::AFFINITY)?.try_into()?;
        *flows.affinity.borrow_mut() = affinity.iter().collect::<Result<_, _>>()?;
        Ok(flows)
    }

    fn read_flows<F: RigFamily>(&self, [conntrack, new_flows, snat, new_snat, frags]: &[&str; 5]) -> Result<FlowsOf<F>>
    where
        FlowKey<F>: Pod,
        Flow<F>: Pod,
        SnatEntry<F>: Pod,
        FragKey<F>: Pod,
        FragEntry<F>: Pod,
    {
        let flows = FlowsOf::default();
        *flows.conntrack.borrow_mut() = self.read_map(conntrack)?;
        *flows.new_flows.borrow_mut() = self.read_map(new_flows)?;
        *flows.snat.borrow_mut() = self.read_map(snat)?;
        *flows.new_snat.borrow_mut() = self.read_map(new_snat)?;
        *flows.frags.borrow_mut() = self.read_map(frags)?;
        *flows.loads.borrow_mut() = self.read_used(F::LOADS, F::tables(self.actual()).backends.len())?;
        Ok(flows)
    }

    /// Where the maps are pinned.
    pub(crate) fn pins(&self) -> &'static str {
        PIN_DIR
    }

    /// Backends whose connections are counted.
    pub(crate) fn counted(&self) -> Counted {
        self.control.counted()
    }

    /// The backends of all open IPv4 flows.
    pub(crate) fn forward_flows(&self) -> Result<Vec<u32>> {
        let flows = self.read_flows::<V4>(&FLOW_MAPS_V4)?;
        let new = flows.new_flows.borrow();
        Ok(new.values().filter(|flow| flow.kind == FlowKind::Forward).map(|flow| flow.backend_id).collect())
    }

    /// Those of the first `len` elements of an array that are not 0.
    pub(crate) fn read_used<V: Pod + Default + PartialEq>(&self, name: &str, len: usize) -> Result<BTreeMap<u32, V>> {
        let array: Array<&MapData, V> = self.map(name)?.try_into()?;
        let mut used = BTreeMap::new();
        for index in 0..u32::try_from(len)? {
            let value = array.get(&index, 0).with_context(|| name.to_owned())?;
            if value != V::default() {
                used.insert(index, value);
            }
        }
        Ok(used)
    }

    fn read_map<K: Pod + Ord, V: Pod>(&self, name: &str) -> Result<BTreeMap<K, V>> {
        let map: HashMap<&MapData, K, V> = self.map(name)?.try_into()?;
        Ok(map.iter().collect::<Result<_, _>>()?)
    }
}

/// The maps that one family's packets write.
pub(super) const FLOW_MAPS_V4: [&str; 5] =
    [names::CONNTRACK_V4, names::NEW_FLOWS_V4, names::SNAT_V4, names::NEW_SNAT_V4, names::FRAGS_V4];
pub(super) const FLOW_MAPS_V6: [&str; 5] =
    [names::CONNTRACK_V6, names::NEW_FLOWS_V6, names::SNAT_V6, names::NEW_SNAT_V6, names::FRAGS_V6];

/// The context of a packet at a hook, as BPF_PROG_TEST_RUN takes it.
pub(crate) fn skb_context(place: &Place, ifindex: u32) -> [u8; SKB_LEN] {
    let ingress_ifindex = match (place.hook, place.own) {
        (Hook::Ingress, _) => ifindex,
        (Hook::Egress, true) => 0,
        (Hook::Egress, false) => CAME_IN_BY,
    };
    let mut context = [0; SKB_LEN];
    context[SKB_INGRESS_IFINDEX..SKB_INGRESS_IFINDEX + 4].copy_from_slice(&ingress_ifindex.to_ne_bytes());
    context[SKB_IFINDEX..SKB_IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
    context
}

/// BPF_PROG_TEST_RUN wants the link header and, behind an IP EtherType, the whole network header (seen on Linux 6.18).
pub(super) fn shortest(frame: &[u8]) -> usize {
    match ether_type(frame) {
        Some(V4::ETHERTYPE) => ETH_LEN + IPV4_MIN_LEN,
        Some(V6::ETHERTYPE) => ETH_LEN + IPV6_LEN,
        _ => ETH_LEN + 1,
    }
}

fn small() -> Capacities {
    Capacities {
        addresses: SMALL,
        services: SMALL,
        sets: SMALL,
        rings: RINGS,
        backends: SMALL,
        source_ranges: SMALL,
        interfaces: SMALL,
        port_names: SMALL,
        ..Capacities::default()
    }
}

impl Machine for KernelMachine {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn program(&mut self, events: &[Event]) -> Result<()> {
        self.control.program(events)
    }

    fn network(&mut self, change: &str) -> Result<()> {
        let (change, heard) = self.node.change(change)?;
        change_address(&change)?;
        self.control.network(heard)
    }

    fn complaints(&self) -> Vec<String> {
        self.control.complaints()
    }

    fn advance(&mut self, seconds: u64) -> Result<()> {
        self.now_ns += seconds * 1_000_000_000;
        self.ebpf.set_clock(self.now_ns)?;
        let now_s = (self.now_ns / 1_000_000_000) as u32;
        let in_use = frontends_in_use(Path::new(PIN_DIR), &self.control.retired(), now_s)?;
        self.control.advance(seconds, &in_use)
    }

    fn evict(&mut self, eviction: &Eviction) -> Result<()> {
        self.evict_entry(eviction)
    }

    fn run(&mut self, hop: &Hop) -> Result<Option<Outcome>> {
        if hop.frame.len() < shortest(&hop.frame) {
            return Ok(None);
        }
        let interface = &hop.place.interface;
        let ifindex = self.index_of(interface)?;
        let before = self.counters()?;
        let (returned, frame) = self.test_run(hop, ifindex)?;
        let verdict = self.verdict()?;
        let mut expected = before;
        expected[verdict.reason as usize] += 1;
        ensure!(self.counters()? == expected, "the packet was not counted once as {}", verdict.reason.name());
        let wanted = match verdict.action {
            Action::Pass => TCX_NEXT,
            Action::Drop => TC_ACT_SHOT,
            Action::Redirect | Action::Reply => TC_ACT_REDIRECT,
        };
        if returned != wanted {
            bail!("the program returned {returned}, its record says {:?} ({})", verdict.action, verdict.reason.name());
        }
        let actual = self.control.actual();
        let backend = match ether_type(&hop.frame) {
            Some(V6::ETHERTYPE) => backend_in_words::<V6>(actual, verdict.backend),
            _ => backend_in_words::<V4>(actual, verdict.backend),
        };
        Ok(Some(Outcome {
            action: verdict.action,
            reason: verdict.reason,
            interface: (verdict.action == Action::Redirect).then(|| self.node.name_of(verdict.ifindex)),
            backend,
            frame: if verdict.action == Action::Drop { hop.frame.clone() } else { frame },
        }))
    }

    fn dump(&mut self) -> Result<String> {
        self.control.dump()
    }

    fn flows(&mut self) -> Result<Option<String>> {
        Ok(Some(flows_text(&self.read_all_flows()?)))
    }
}
