//! `cargo xtask test`: every check and test, one stage after the other. `.ci/run` calls it.
//! A failed stage does not hide the results of the later ones; only a failed build ends the run.

use std::{
    fs,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use crate::{
    build_ebpf, doc_links, image, run,
    setup::{self, Scope},
    summary::{self, Counts},
    toolchain::Choice,
    vmtest, workspace,
};

/// A suite that takes longer hangs; the slowest takes a few minutes.
const SUITE_LIMIT_SECONDS: u32 = 1200;

#[derive(Args)]
pub(crate) struct Options {
    /// Leave out the suites that need root; their tests are counted as skipped
    #[arg(long)]
    no_root: bool,
    /// Run only this stage (may be given more than once); setup and the builds come first all the same
    #[arg(long = "stage", value_enum)]
    stages: Vec<Stage>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Stage {
    /// Formatting of all crates
    Fmt,
    /// Lints of the crates that run on the host
    Clippy,
    /// Lints of the kernel programs, checked for the host
    ClippyEbpf,
    /// Links between the documents
    Docs,
    /// Rules, and the scenarios and tests that show them
    Coverage,
    /// Unit and property tests
    Unit,
    /// Scenarios through the model
    Model,
    /// Scenarios through the loaded kernel programs (root)
    Kernel,
    /// Random packets through the loaded kernel programs, for a minute (root)
    Fuzz,
    /// Nodes, pods and clients with real sockets (root)
    Netns,
    /// The agent against the API server double (root)
    Agent,
    /// The image without optimisation, run as the manifests say (root)
    Image,
    /// Load, attach and all scenarios on other kernels, in qemu (`cargo xtask vmtest` also runs real agents and sockets there)
    Kernels,
}

/// How the suites that need root are run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Root {
    Direct,
    Sudo,
    None,
}

/// What the stages brought so far.
#[derive(Default)]
struct Ledger {
    rows: Vec<Row>,
    counts: Counts,
}

struct Row {
    name: &'static str,
    note: String,
    took: Duration,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut ledger = Ledger::default();
    let root = root_access(options.no_root);
    if prepare(&mut ledger, root) {
        for stage in Stage::value_variants() {
            let wanted = options.stages.is_empty() || options.stages.contains(stage);
            if wanted {
                run_stage(&mut ledger, *stage, root);
            }
        }
    }
    ledger.close();
    Ok(if ledger.counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Setup and the builds, without which nothing else can run. Warnings in the kernel programs are a
/// failure, but there is an object to go on with.
fn prepare(ledger: &mut Ledger, root: Root) -> bool {
    let scope = if root == Root::None { Scope::Build } else { Scope::All };
    if !ledger.stage("setup", || setup::ensure(scope).map(|()| None)) {
        return false;
    }
    let mut built = false;
    ledger.stage("build-ebpf", || {
        let warnings = build_ebpf::build(Choice::of_environment()?)?;
        built = true;
        ensure!(warnings == 0, "{warnings} warnings in the kernel programs");
        Ok(None)
    });
    if root != Root::None {
        ledger.stage("build-next", || build_next().map(|()| None));
    }
    built
        && ledger.stage("build", || {
            let mut command = workspace::cargo();
            run::run(command.args(["build", "--locked", "--bins"]).args(PACKAGES)).map(|()| None)
        })
}

const PACKAGES: [&str; 4] = ["--package", "proxy-agent", "--package", "proxy-rig"];

/// The agent once more, with tables of another layout, as `weir-next` beside `weir`: what tests upgrade to. The rig is named, so that
/// what both depend on is compiled once. `weir` is put back by the build that follows.
fn build_next() -> Result<()> {
    build_ebpf::build_next(Choice::of_environment()?)?;
    let mut command = workspace::cargo();
    command.args(["build", "--locked", "--bin", "weir", "--features", "proxy-agent/abi-next"]).args(PACKAGES);
    run::run(command.env("WEIR_EBPF_OBJECT", workspace::next_object()))?;
    let (built, next) = (workspace::binary("debug", "weir")?, workspace::binary("debug", "weir-next")?);
    // Not over a file that an agent may still run from.
    let _ = fs::remove_file(&next);
    fs::copy(&built, &next).with_context(|| format!("copying {} to {}", built.display(), next.display()))?;
    Ok(())
}

/// Runs one stage. Its failure does not hide what the later stages find.
fn run_stage(ledger: &mut Ledger, stage: Stage, root: Root) {
    match stage {
        Stage::Fmt => ledger.stage("fmt", || cargo_check("fmt --all --check")),
        Stage::Clippy => ledger.stage("clippy", || {
            cargo_check("clippy --workspace --exclude proxy-ebpf --all-targets --locked -- -Dwarnings")
        }),
        Stage::ClippyEbpf => {
            ledger.stage("clippy-ebpf", || cargo_check("clippy --package proxy-ebpf --locked -- -Dwarnings"))
        }
        Stage::Docs => ledger.stage("docs", || doc_links::check().map(|()| None)),
        Stage::Coverage => ledger.stage("coverage", coverage),
        Stage::Unit => ledger.stage("unit", unit_tests),
        Stage::Model => ledger.stage("model", || suite("model", Root::Direct)),
        Stage::Kernel => ledger.stage("kernel", || suite("kernel", root)),
        Stage::Fuzz => ledger.stage("fuzz", || suite("fuzz", root)),
        Stage::Netns => ledger.stage("netns", || suite("netns", root)),
        Stage::Agent => ledger.stage("agent", || suite("agent", root)),
        Stage::Image => ledger.stage("image", || image::build_for_tests().and_then(|()| suite("image", root))),
        Stage::Kernels => ledger.stage("kernels", || vmtest::stage().map(Some)),
    };
}

fn cargo_check(args: &str) -> Result<Option<Counts>> {
    run::run(workspace::cargo().args(args.split_whitespace())).map(|()| None)
}

/// No rule without a scenario, and a page that says so.
fn coverage() -> Result<Option<Counts>> {
    let rig = workspace::binary("debug", "weir-rig")?;
    run::run(Command::new(rig).arg("coverage").current_dir(workspace::root())).map(|()| None)
}

/// Unit and property tests, by nextest where it is installed.
fn unit_tests() -> Result<Option<Counts>> {
    let mut command = workspace::cargo();
    let nextest = run::find_program("cargo-nextest").is_some();
    if nextest {
        command.args(["nextest", "run", "--workspace", "--exclude", "proxy-ebpf", "--locked"]);
        command.args(["--no-fail-fast", "--no-tests", "pass", "--status-level", "fail", "--show-progress", "none"]);
    } else {
        println!("cargo-nextest is not installed, running `cargo test` instead");
        command.args(["test", "--workspace", "--exclude", "proxy-ebpf", "--lib", "--bins", "--tests"]);
        command.args(["--locked", "--no-fail-fast"]);
    }
    let recorded = run::record(&mut command)?;
    let counts =
        if nextest { summary::of_nextest(&recorded.stderr) } else { summary::of_result_lines(&recorded.stdout) };
    conclude(&recorded, counts, &run::line(&command))
}

/// One suite of the rig; without root its tests are only listed, to be counted as skipped.
fn suite(name: &str, root: Root) -> Result<Option<Counts>> {
    let rig = workspace::binary("debug", "weir-rig")?;
    if root == Root::None {
        let skipped = summary::of_list(&run::capture(Command::new(rig).args(["suite", name, "--list"]))?);
        println!("the {name} suite needs root: {skipped} tests are skipped");
        return Ok(Some(Counts { skipped, ..Counts::default() }));
    }
    // SIGTERM lets the rig remove its namespaces; the second signal is for one that does not listen.
    // In the foreground, so that Ctrl-C reaches the rig too.
    let mut words: Vec<String> = ["timeout", "--foreground", "--kill-after=20"].map(str::to_owned).into();
    words.push(SUITE_LIMIT_SECONDS.to_string());
    if root == Root::Sudo {
        words.splice(0..0, ["sudo".into(), "-n".into()]);
    }
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).arg(&rig).args(["suite", name]).current_dir(workspace::root());
    let recorded = run::record(&mut command)?;
    conclude(&recorded, summary::of_result_lines(&recorded.stdout), &run::line(&command))
}

/// A runner that fails although it counted no failure, or that counts nothing, is an error.
fn conclude(recorded: &run::Recorded, counts: Option<Counts>, line: &str) -> Result<Option<Counts>> {
    let counts = counts.with_context(|| format!("`{line}` printed no result ({})", recorded.status))?;
    if !recorded.status.success() && counts.failed == 0 {
        bail!("`{line}` ended with {} after {counts}", recorded.status);
    }
    Ok(Some(counts))
}

fn root_access(no_root: bool) -> Root {
    if no_root {
        Root::None
    } else if run::is_root() {
        Root::Direct
    } else if run::find_program("sudo").is_some() && run::capture(Command::new("sudo").args(["-n", "true"])).is_ok() {
        Root::Sudo
    } else {
        Root::None
    }
}

impl Ledger {
    /// Runs a stage and books it. A stage that fails outside of its tests counts as one failure, so
    /// that the closing line never contradicts the exit code.
    fn stage(&mut self, name: &'static str, work: impl FnOnce() -> Result<Option<Counts>>) -> bool {
        println!("\n== {name}");
        let start = Instant::now();
        let outcome = work();
        let took = start.elapsed();
        let (succeeded, note, counts) = match outcome {
            Ok(None) => (true, "ok".to_owned(), Counts::default()),
            Ok(Some(counts)) => (counts.failed == 0, counts.to_string(), counts),
            Err(error) => {
                println!("error: {error:#}");
                (false, "failed".to_owned(), Counts { failed: 1, ..Counts::default() })
            }
        };
        println!("== {name}: {note} ({:.1} s)", took.as_secs_f64());
        self.counts += counts;
        self.rows.push(Row { name, note, took });
        succeeded
    }

    fn close(&self) {
        println!("\n== summary");
        for Row { name, note, took } in &self.rows {
            println!("{name:<12} {:>7.1} s  {note}", took.as_secs_f64());
        }
        println!("{}", self.counts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_that_fails_outside_of_tests_counts_as_one_failure() {
        let mut ledger = Ledger::default();
        assert!(ledger.stage("good", || Ok(None)));
        assert!(!ledger.stage("bad", || bail!("no compiler")));
        assert!(!ledger.stage("tests", || Ok(Some(Counts { passed: 4, failed: 2, skipped: 1 }))));
        assert_eq!(ledger.counts.to_string(), "4 passed, 3 failed, 1 skipped");
    }
}
