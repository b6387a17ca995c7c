//! `weir-rig suite NAME`: the test suites that are no unit tests, each run by libtest-mimic. `cargo xtask test` calls it and
//! reads the closing line.

mod agent;
mod coverage;
#[cfg(test)]
mod docs_packets;
mod fuzz;
mod kernel;
mod layouts;
mod model;
mod netns;
mod restarts;
mod schedulers;
mod switching;
mod tap;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Result, anyhow};
use clap::ValueEnum;
use libtest_mimic::{Arguments, Trial};

use crate::scenario::{Machine, Scenario, play};

pub use coverage::{CoverageArgs, run as coverage};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// Scenarios through the agent's code, fake maps and the decision code
    Model,
    /// The same through the loaded kernel programs (root)
    Kernel,
    /// Random packets through the loaded kernel programs, for a minute (root)
    Fuzz,
    /// Nodes, pods and clients with real sockets (root)
    Netns,
    /// The agent against the API server double (root)
    Agent,
    /// The image of `cargo xtask image`, run as the manifests of deploy/ say (root)
    Image,
}

#[derive(Debug, clap::Args)]
pub struct SuiteArgs {
    suite: Suite,
    /// Options and filters of a Rust test runner (`--list`, `--test-threads`, part of a name)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<OsString>,
}

/// Runs the tests; they say themselves what failed.
pub fn run(args: &SuiteArgs) -> Result<ExitCode> {
    let mut options =
        Arguments::from_iter(std::iter::once("weir-rig suite".into()).chain(args.options.iter().cloned()));
    let tests = match args.suite {
        Suite::Model => model::tests()?,
        Suite::Kernel => kernel::tests()?,
        Suite::Fuzz => fuzz::tests(),
        Suite::Netns => netns::tests()?,
        Suite::Agent => agent::tests()?,
        Suite::Image => agent::image::tests(),
    };
    if options.test_threads.is_none() && args.suite != Suite::Model {
        // Two cores are all that a small machine has, and each of these tests brings several processes or a whole object.
        options.test_threads = Some(2);
    }
    Ok(libtest_mimic::run(&options, tests).exit_code())
}

/// Where the scenario files lie: below the working directory, else in the source tree that this was built from.
pub fn scenario_dir() -> PathBuf {
    let here = Path::new("scenarios");
    if here.is_dir() { here.to_owned() } else { Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios") }
}

/// Lines of the trace that are shown with an error.
const TRACE_LINES: usize = 12;

/// Plays a scenario; an error carries the end of the trace.
fn play_or_tell(scenario: &Scenario, machines: &mut [Box<dyn Machine + '_>]) -> Result<()> {
    let mut trace = String::new();
    play(scenario, machines, &mut trace).map_err(|error| {
        let lines: Vec<&str> = trace.lines().collect();
        let tail = lines[lines.len().saturating_sub(TRACE_LINES)..].join("\n");
        anyhow!("rules {}: {}\n{tail}\n{error:#}", scenario.rules_text(), scenario.intent.trim())
    })
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A test that needs root; without it, it is counted as ignored and says why.
fn root_trial(name: &str, test: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    let kind = if is_root() { "" } else { "needs root" };
    Trial::test(name, move || test().map_err(|error| format!("{error:#}").into()))
        .with_kind(kind)
        .with_ignored_flag(!is_root())
}
