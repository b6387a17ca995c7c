//! A loaded driver (proxy-ebpf/src/bench/drive.rs) with one program behind it. Called by `measure`.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, ProgramArray},
    programs::{ProgramFd, SchedClassifier, TestRun, TestRunOptions},
};
use proxy_common::{
    abi::{FlowKey, ServiceKey, capacity},
    bench::{Driver, FloorFlow, NO_TARGET},
    net::{Family, V4, V6},
};

use super::traffic::Version;

/// Where `cargo xtask build-ebpf` puts it, below the source tree.
const OBJECT: &str = "target/ebpf/bench.o";
/// What an unused map of the object gets.
const UNUSED_ENTRIES: u32 = 128;

pub(super) struct Object(Vec<u8>);

impl Object {
    pub(super) fn read() -> Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(OBJECT);
        let bytes = fs::read(&path).with_context(|| format!("{}: run `cargo xtask build-ebpf`", path.display()))?;
        Ok(Self(bytes))
    }
}

/// What the driver calls.
pub(super) enum Target {
    Nothing,
    /// Up to one of `FLOOR_STEPS`.
    Floor {
        last_step: u32,
    },
    Program(ProgramFd),
}

pub(super) struct Probe {
    ebpf: Ebpf,
    driver: Array<aya::maps::MapData, Driver>,
    drive: &'static str,
    // The program array holds no reference that outlives its own descriptor.
    _targets: ProgramArray<aya::maps::MapData>,
}

impl Probe {
    pub(super) fn new(object: &Object, version: Version, target: Target) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        let last_step = if let Target::Floor { last_step } = target { last_step } else { u32::MAX };
        loader.override_global("LAST_STEP", &last_step, true);
        let flows = if matches!(target, Target::Floor { .. }) { capacity::CONNTRACK as u32 } else { UNUSED_ENTRIES };
        for name in ["FLOOR_FLOWS_V4", "FLOOR_FLOWS_V6"] {
            loader.map_max_entries(name, flows);
        }
        let mut ebpf = loader.load(&object.0).context("loading the programs of the bench")?;
        let (drive, floor) = match version {
            Version::V4 => ("drive_v4", "floor_v4"),
            Version::V6 => ("drive_v6", "floor_v6"),
        };
        let target = match target {
            Target::Program(fd) => fd,
            Target::Nothing => load(&mut ebpf, "nothing")?,
            Target::Floor { .. } => load(&mut ebpf, floor)?,
        };
        load(&mut ebpf, drive)?;
        let mut targets = ProgramArray::try_from(ebpf.take_map("TARGETS").context("map TARGETS")?)?;
        targets.set(0, &target, 0).context("putting the program behind the driver")?;
        let driver = Array::try_from(ebpf.take_map("DRIVER").context("map DRIVER")?)?;
        Ok(Self { ebpf, driver, drive, _targets: targets })
    }

    /// From now on these packets are made.
    pub(super) fn aim(&mut self, driver: &Driver) -> Result<()> {
        self.driver.set(0, driver, 0).context("telling the driver")
    }

    /// Mean time of one run, as the kernel gives it: whole nanoseconds, rounded down.
    pub(super) fn run(&self, frame: &[u8], context: &[u8], repeat: u32) -> Result<Duration> {
        let program: &SchedClassifier = self.ebpf.program(self.drive).context(self.drive)?.try_into()?;
        let options = TestRunOptions { data_in: Some(frame), ctx_in: Some(context), repeat, ..TestRunOptions::new() };
        let result = program.test_run(options).context("BPF_PROG_TEST_RUN of the driver")?;
        ensure!(result.return_value != NO_TARGET as u32, "the driver found no program to call");
        Ok(result.duration)
    }

    /// What the last run returned must be this.
    pub(super) fn check(&self, frame: &[u8], context: &[u8], expected: u32) -> Result<()> {
        let program: &SchedClassifier = self.ebpf.program(self.drive).context(self.drive)?.try_into()?;
        let options = TestRunOptions { data_in: Some(frame), ctx_in: Some(context), ..TestRunOptions::new() };
        let returned = program.test_run(options).context("BPF_PROG_TEST_RUN of the driver")?.return_value;
        ensure!(returned == expected, "the program returned {returned}, not {expected}");
        Ok(())
    }

    /// Fills the floor's tables.
    pub(super) fn fill_floor<F: FloorMaps>(&mut self, keys: impl Iterator<Item = FlowKey<F>>) -> Result<()>
    where
        FlowKey<F>: Pod,
        FloorFlow<F>: Pod,
        ServiceKey<F>: Pod,
    {
        let [vips, flows] = F::NAMES;
        let mut all = Vec::new();
        let mut table: HashMap<_, FlowKey<F>, FloorFlow<F>> = self.ebpf.map_mut(flows).context(flows)?.try_into()?;
        for key in keys {
            // Any other destination than the packet's own.
            let flow = FloorFlow { backend: key.src, backend_port: key.dst_port ^ 1, zero: 0, rest: [0; 11] };
            table.insert(key, flow, 0).context(flows)?;
            all.push(ServiceKey::<F> { addr: key.dst, port: key.dst_port, protocol: key.protocol, zero: 0 });
        }
        all.sort();
        all.dedup();
        let mut table: HashMap<_, ServiceKey<F>, u32> = self.ebpf.map_mut(vips).context(vips)?.try_into()?;
        for key in all {
            table.insert(key, 1, 0).context(vips)?;
        }
        Ok(())
    }
}

pub(super) trait FloorMaps: Family {
    const NAMES: [&str; 2];
}
impl FloorMaps for V4 {
    const NAMES: [&str; 2] = ["FLOOR_VIPS_V4", "FLOOR_FLOWS_V4"];
}
impl FloorMaps for V6 {
    const NAMES: [&str; 2] = ["FLOOR_VIPS_V6", "FLOOR_FLOWS_V6"];
}

fn load(ebpf: &mut Ebpf, name: &str) -> Result<ProgramFd> {
    let program: &mut SchedClassifier = ebpf.program_mut(name).with_context(|| name.to_owned())?.try_into()?;
    program.load().with_context(|| format!("loading {name}"))?;
    Ok(program.fd()?.try_clone()?)
}
