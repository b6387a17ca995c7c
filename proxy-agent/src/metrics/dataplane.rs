//! `weir_*`: what stands in the kernel, read when somebody asks. The programs count by reason; nothing is added to their work.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    os::fd::AsFd as _,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use aya::maps::{Map, MapData, MapInfo, PerCpuArray};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use proxy_common::abi::{ABI_VERSION, Reason, names};

use super::{
    flows::{FlowCache, FlowCounts},
    tables::TableCounts,
};
use crate::loader::{Pins, programs, sys};

/// What one number is about.
type Labels<'a> = Vec<(&'static str, &'a str)>;

#[derive(Debug)]
pub(super) struct DataplaneCollector {
    pins: Pins,
    flows: Mutex<FlowCache>,
    tables: Arc<Mutex<TableCounts>>,
    snat_ports: u32,
}

/// The reasons of one metric, and what its label is called.
struct Group {
    metric: &'static str,
    help: &'static str,
    label: &'static str,
    numbers: std::ops::RangeInclusive<u32>,
}

/// By the numbers of the reasons, which never change their meaning; a new reason is in its group by itself.
const GROUPS: [Group; 5] = [
    Group {
        metric: "weir_packets",
        help: "Packets that were translated, by the path they took",
        label: "path",
        numbers: 20..=39,
    },
    Group {
        metric: "weir_passed_packets",
        help: "Packets that passed the programs unchanged, by reason; `probe` are no packets but the health check's questions",
        label: "reason",
        numbers: 1..=19,
    },
    Group {
        metric: "weir_refused_packets",
        help: "Packets that were answered by an ICMP port unreachable, by reason",
        label: "reason",
        numbers: 40..=59,
    },
    Group {
        metric: "weir_dropped_packets",
        help: "Packets that were dropped, by reason",
        label: "reason",
        numbers: 60..=79,
    },
    Group {
        metric: "weir_socket_calls",
        help: "Calls of sockets that the connect hooks or the agent acted on, by what became of them",
        label: "result",
        numbers: 80..=127,
    },
];

impl DataplaneCollector {
    pub(super) fn new(pins: Pins, tables: Arc<Mutex<TableCounts>>, snat_ports: u32) -> Self {
        Self { pins, flows: Mutex::default(), tables, snat_ports }
    }

    fn counters(&self) -> Result<BTreeMap<u32, u64>, aya::maps::MapError> {
        let map = Map::from_map_data(MapData::from_pin(self.pins.map(names::COUNTERS))?)?;
        let array = PerCpuArray::<_, u64>::try_from(map)?;
        let mut sums = BTreeMap::new();
        for (number, values) in (0..).zip(array.iter()) {
            sums.insert(number, values?.iter().sum());
        }
        Ok(sums)
    }
}

impl Collector for DataplaneCollector {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut out = Out(encoder);
        let version = ABI_VERSION.to_string();
        let labels = vec![("version", env!("CARGO_PKG_VERSION")), ("map_layout", version.as_str())];
        out.gauges("weir_build_info", "1; the labels say what runs", [(labels, 1.0)])?;
        // What cannot be read has no sample: a gap says more than a zero.
        let counters = self.counters().map_err(|error| tracing::debug!(%error, "no counters for the metrics")).ok();
        counted(&mut out, counters.as_ref())?;
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut cache = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        let flows = cache.counts(self.pins.dir());
        maps(&mut out, &self.pins, &tables, flows)?;
        connections(&mut out, flows, self.snat_ports)?;
        run_times(&mut out, &self.pins)
    }
}

fn counted(out: &mut Out<'_>, counters: Option<&BTreeMap<u32, u64>>) -> fmt::Result {
    let of = |reason: Reason| counters.map(|counters| counters.get(&(reason as u32)).copied().unwrap_or_default());
    for group in GROUPS {
        let reasons = Reason::ALL.iter().filter(|reason| group.numbers.contains(&(**reason as u32)));
        let samples = reasons.filter_map(|reason| Some((vec![(group.label, reason.name())], of(*reason)?)));
        out.counters(group.metric, group.help, samples)?;
    }
    let failed =
        of(Reason::SnatPortsBusy).zip(of(Reason::TupleBusy)).map(|(busy, taken)| (Labels::new(), busy + taken));
    let help = "Packets that found no free source port towards their endpoint; they are dropped";
    out.counters("weir_snat_port_searches_failed", help, failed)
}

fn maps(out: &mut Out<'_>, pins: &Pins, tables: &TableCounts, flows: &FlowCounts) -> fmt::Result {
    let filled = tables.entries.iter().map(|(map, entries)| (*map, *entries as f64));
    let kept = flows.entries.iter().map(|(map, entries)| (*map, *entries as f64));
    let samples = filled.chain(kept).map(|(map, entries)| (vec![("map", map)], entries));
    let help = "Entries in use. Those of the connection tables are counted every 30 s at most";
    out.gauges("weir_map_entries", help, samples)?;
    let capacity =
        |map: &'static str| Some((vec![("map", map)], f64::from(MapInfo::from_pin(pins.map(map)).ok()?.max_entries())));
    let tables_only = |map: &&str| ![names::SWITCHES, names::COUNTERS, names::VERDICT].contains(map);
    let samples = names::PINNED.into_iter().filter(tables_only).filter_map(capacity);
    out.gauges("weir_map_capacity", "Entries that there is room for", samples)?;
    out.gauges("weir_services", "Services that the agent knows", [(Labels::new(), tables.services as f64)])?;
    let help = "Services, and other things to write, whose last write failed; the log says why";
    out.gauges("weir_failing_writes", help, [(Labels::new(), tables.failing as f64)])
}

fn connections(out: &mut Out<'_>, flows: &FlowCounts, snat_ports: u32) -> fmt::Result {
    let states = flows.states.iter();
    let samples =
        states.map(|((family, state), count)| (vec![("ip_family", *family), ("state", *state)], *count as f64));
    out.gauges("weir_flows", "Tracked flows by state; those that ended stay until their place is needed", samples)?;
    let by_family = |value: fn(&(u64, u64)) -> u64| {
        flows.ports.iter().map(move |(family, ports)| (vec![("ip_family", *family)], value(ports) as f64))
    };
    out.gauges("weir_snat_ports_in_use", "Source ports that flows to other nodes have", by_family(|ports| ports.0))?;
    let help = "The same towards the one endpoint that has most; weir_snat_ports is the limit";
    out.gauges("weir_snat_ports_in_use_max", help, by_family(|ports| ports.1))?;
    out.gauges(
        "weir_snat_ports",
        "Source ports that there are towards each endpoint",
        [(Labels::new(), f64::from(snat_ports))],
    )
}

/// Where the kernel keeps statistics (kernel.bpf_stats_enabled=1).
fn run_times(out: &mut Out<'_>, pins: &Pins) -> fmt::Result {
    let found = run_facts(pins).unwrap_or_default();
    let samples = found.iter().map(|(program, (_, count))| (vec![("program", program.as_str())], *count));
    let help = "Runs of the programs, while kernel.bpf_stats_enabled is 1";
    out.counters("weir_program_runs", help, samples)?;
    let samples = found.iter().map(|(program, (ns, _))| (vec![("program", program.as_str())], *ns as f64 / 1e9));
    out.float_counters("weir_program_run_seconds", "Time that they took", samples)
}

/// Nanoseconds and runs by program. Each is loaded once, however many interfaces have it.
fn run_facts(pins: &Pins) -> io::Result<BTreeMap<String, (u64, u64)>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(pins.links())? {
        let path: PathBuf = entry?.path();
        let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let program = file.split('-').next().unwrap_or_default().to_owned();
        if program == "qdisc" || found.contains_key(&program) {
            continue;
        }
        let pinned = sys::obj_get(&path)?;
        // A link, or with clsact the program itself.
        let facts = match sys::link_facts(pinned.as_fd()) {
            Ok(link) if !file.ends_with(crate::loader::CLSACT_MARK) => programs::by_id(link.program),
            _ => Ok(pinned),
        };
        if let Ok(facts) = facts.and_then(|program| programs::facts(program.as_fd())) {
            found.insert(program, (facts.run_time_ns, facts.run_count));
        }
    }
    Ok(found)
}

/// Writes metrics of one name, each with its labels.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn gauges<'s>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'s>, f64)>,
    ) -> fmt::Result {
        self.all(name, help, MetricType::Gauge, samples, ConstGauge::new)
    }

    fn counters<'s>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'s>, u64)>,
    ) -> fmt::Result {
        self.all(name, help, MetricType::Counter, samples, ConstCounter::new)
    }

    fn float_counters<'s>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'s>, f64)>,
    ) -> fmt::Result {
        self.all(name, help, MetricType::Counter, samples, ConstCounter::new)
    }

    fn all<'s, N, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        samples: impl IntoIterator<Item = (Labels<'s>, N)>,
        metric: fn(N) -> M,
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in samples {
            if labels.is_empty() {
                // There is one alone.
                return metric(value).encode(encoder);
            }
            metric(value).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
