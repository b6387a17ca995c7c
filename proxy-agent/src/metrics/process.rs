//! The agent's own process, by the names that every Prometheus client uses. From /proc/self.

use std::{
    fmt, fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

#[derive(Debug)]
pub(super) struct ProcessCollector {
    started: f64,
}

impl ProcessCollector {
    pub(super) fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self { started: now.as_secs_f64() }
    }
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut gauge = |name: &str, help: &str, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        gauge("process_start_time_seconds", "When the agent started, since 1970", self.started)?;
        let (virtual_bytes, resident_bytes) = memory().unwrap_or_default();
        gauge("process_virtual_memory_bytes", "Address space", virtual_bytes)?;
        gauge("process_resident_memory_bytes", "Memory in use", resident_bytes)?;
        gauge(
            "process_open_fds",
            "Open file descriptors",
            fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as f64,
        )?;
        gauge("process_max_fds", "How many there may be", max_fds().unwrap_or_default())?;
        let cpu = ConstCounter::new(cpu_seconds().unwrap_or_default());
        cpu.encode(encoder.encode_descriptor("process_cpu_seconds", "CPU time", None, cpu.metric_type())?)
    }
}

/// Address space and resident memory, in bytes.
fn memory() -> Option<(f64, f64)> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let page = sysconf(SysconfVar::PAGE_SIZE).ok()?? as f64;
    let mut pages = text.split(' ').map_while(|word| word.parse::<f64>().ok());
    Some((pages.next()? * page, pages.next()? * page))
}

/// The soft limit. An unlimited number is left out.
fn max_fds() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/limits").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn cpu_seconds() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    let ticks = sysconf(SysconfVar::CLK_TCK).ok()?? as f64;
    // The name in parentheses may hold blanks. After it, field 3 is the first; utime and stime are 14 and 15.
    let after_name = text.rsplit_once(") ")?.1;
    let times: Vec<f64> = after_name.split(' ').skip(11).take(2).filter_map(|word| word.parse().ok()).collect();
    Some(times.iter().sum::<f64>() / ticks)
}
