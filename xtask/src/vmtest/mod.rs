//! `cargo xtask vmtest`: boots Debian's kernels in qemu (emulated, no KVM needed), with `weir-rig vm-guest` as init process,
//! which loads and attaches the kernel programs and runs the scenarios of the kernel suite. Also a stage of test. Needs no
//! root: qemu and the kernels are packages of Debian, unpacked into the cache directory.

mod initramfs;
mod machine;
mod modules;
mod packages;
mod report;

use std::{
    fs,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;

use crate::{build_ebpf, run, summary::Counts, toolchain::Choice, workspace};
use initramfs::Binaries;
use machine::{Guest, Qemu};
use packages::Kernel;
use report::Report;

/// The oldest kernel that Weir supports and the first of Debian's with tcx.
const SERIES: [&str; 2] = ["6.1", "6.12"];

/// A machine of the stage takes three minutes where nothing else runs.
const STAGE_LIMIT: Duration = Duration::from_secs(1500);

#[derive(Args)]
pub(crate) struct Options {
    /// Series of a Debian kernel (may be given more than once) [default: 6.1 and 6.12]
    #[arg(long = "kernel")]
    kernels: Vec<String>,
    /// Only scenarios whose name contains this text
    #[arg(long)]
    scenarios: Option<String>,
    /// Seconds after which a machine is ended
    #[arg(long, default_value_t = 1800)]
    limit: u64,
}

/// What the boots need: qemu, and a kernel for each series.
struct Machines {
    qemu: Qemu,
    kernels: Vec<Kernel>,
}

struct Outcome {
    series: String,
    /// As in the names of the packages: `6.1.0-56-cloud-amd64`.
    release: String,
    report: Report,
    took: Duration,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    build_ebpf::build(Choice::of_environment()?)?;
    let packages = ["--package", "proxy-agent", "--package", "proxy-rig"];
    run::run(workspace::cargo().args(["build", "--locked", "--bins"]).args(packages))?;
    let series: Vec<&str> = options.kernels.iter().map(String::as_str).collect();
    let series = if series.is_empty() { SERIES.to_vec() } else { series };
    let limit = Duration::from_secs(options.limit);
    let guest = Guest { scenarios: options.scenarios.as_deref(), sockets: true, limit };
    let counts = boot(&series, &machines(&series)?, guest)?;
    println!("{counts}");
    Ok(if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// For the stage of test, which has built everything: all but the tests with real agents and sockets, which take minutes under
/// emulation. Where there is no qemu or kernel to be had, the stage counts as skipped.
pub(crate) fn stage() -> Result<Counts> {
    let machines = match machines(&SERIES) {
        Ok(machines) => machines,
        Err(error) => {
            println!("other kernels are skipped: {error:#}");
            return Ok(Counts { skipped: SERIES.len(), ..Counts::default() });
        }
    };
    boot(&SERIES, &machines, Guest { scenarios: None, sockets: false, limit: STAGE_LIMIT })
}

fn machines(series: &[&str]) -> Result<Machines> {
    ensure!(cfg!(target_arch = "x86_64"), "the kernels are x86-64's, and so must be the programs that run on them");
    let kernel = |series: &&str| packages::kernel(series).with_context(|| format!("a kernel {series}"));
    Ok(Machines { qemu: packages::qemu()?, kernels: series.iter().map(kernel).collect::<Result<_>>()? })
}

/// All kernels at the same time; prints what each of them reported.
fn boot(series: &[&str], Machines { qemu, kernels }: &Machines, guest: Guest<'_>) -> Result<Counts> {
    let binaries =
        Binaries { rig: workspace::binary("debug", "weir-rig")?, agent: workspace::binary("debug", "weir")? };
    let outcomes = thread::scope(|scope| {
        let binaries = &binaries;
        let machines: Vec<_> = series
            .iter()
            .zip(kernels)
            .map(|(series, kernel)| scope.spawn(move || boot_one(series, kernel, qemu, binaries, guest)))
            .collect();
        let ended = machines.into_iter().map(|machine| machine.join().map_err(|_| anyhow!("a thread panicked"))?);
        ended.collect::<Result<Vec<Outcome>>>()
    })?;
    let mut counts = Counts::default();
    for outcome in &outcomes {
        counts += tell(outcome);
    }
    print!("{}", report::table(&outcomes.iter().map(|it| (it.release.as_str(), &it.report)).collect::<Vec<_>>()));
    Ok(counts)
}

fn boot_one(series: &str, kernel: &Kernel, qemu: &Qemu, binaries: &Binaries, guest: Guest<'_>) -> Result<Outcome> {
    let directory = workspace::root().join("target/vmtest").join(series);
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let initramfs = directory.join("initramfs");
    initramfs::write(&initramfs, kernel, binaries, &directory)?;
    let start = Instant::now();
    let ended = qemu.run(&kernel.image, &initramfs, &directory, guest)?;
    let report = Report::parse(&fs::read(directory.join(machine::REPORT)).unwrap_or_default(), &ended);
    fs::remove_file(&initramfs).with_context(|| format!("removing {}", initramfs.display()))?;
    Ok(Outcome { series: series.to_owned(), release: kernel.release.clone(), report, took: start.elapsed() })
}

/// Prints the checks of one kernel; where one failed, all that the machine said.
fn tell(outcome: &Outcome) -> Counts {
    let Outcome { series, release, report, took } = outcome;
    println!("-- kernel {release}, {:.0} s", took.as_secs_f64());
    let counts = report.counts();
    if counts.failed > 0 {
        let directory = workspace::root().join("target/vmtest").join(series);
        let console = fs::read(directory.join(machine::CONSOLE)).unwrap_or_default();
        println!("{}", report.text());
        println!("-- the last messages of kernel {release} (all of them: {})", directory.display());
        println!("{}", report::tail(&String::from_utf8_lossy(&console), 30));
    }
    print!("{}", report.checks());
    counts
}
