//! `weir-rig vm-guest`: the init process of a virtual machine that runs another kernel. Loads the programs, attaches them,
//! runs the scenarios of the kernel suite, says how it went and switches the machine off. `cargo xtask vmtest` builds the
//! machine and reads the report: lines that begin with [`MARK`], and the suite's own result line.

mod checks;
mod init;

use std::{
    convert::Infallible,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::verifier::Verified;

/// Begins the lines of the report that xtask reads.
const MARK: &str = "vm-guest:";

/// `sockets`: also tests with real agents, which take minutes under emulation. `scenarios` is part of the names of those to run. Comes back only with an error: the end is a machine that is off.
pub fn run(sockets: bool, scenarios: Option<&str>) -> Result<Infallible> {
    ensure!(std::process::id() == 1, "vm-guest is the init process of a virtual machine (see `cargo xtask vmtest`)");
    init::mount_all()?;
    init::report_to_serial_line()?;
    run_checks(sockets, scenarios);
    println!("{MARK} end");
    init::power_off()
}

/// A check that fails does not hide the later ones.
fn run_checks(sockets: bool, scenarios: Option<&str>) {
    if !check("modules", init::insert_modules) {
        return;
    }
    if check("load", || {
        let rows = checks::load()?;
        rows.iter().for_each(tell_program);
        Ok(format!("{} programs", rows.len()))
    }) {
        check("tcx", checks::tcx);
        check("attach", checks::attach);
        check("cgroup", checks::cgroup);
        if sockets {
            check("sctp", || netns_suite("sctp", "/proc/net/sctp"));
            check("vlan", || netns_suite("trunk", "/proc/net/vlan"));
        }
        check("suite", || kernel_suite(scenarios));
    }
}

fn check(name: &str, work: impl FnOnce() -> Result<String>) -> bool {
    match work() {
        Ok(detail) => {
            println!("{MARK} check {name} ok {detail}");
            true
        }
        Err(error) => {
            println!("{error:#}");
            let first = format!("{error:#}").lines().next().unwrap_or_default().to_owned();
            println!("{MARK} check {name} failed {first}");
            false
        }
    }
}

fn tell_program(row: &Verified) {
    println!("{MARK} program {} {} {} {}", row.program, row.instructions, row.translated, row.stack);
}

/// Real agents and sockets: tests for which this machine's own kernel may lack what `needed` shows. Where it is missing here as well,
/// they would be ignored.
fn netns_suite(name: &str, needed: &str) -> Result<String> {
    ensure!(Path::new(needed).exists(), "this kernel has no {needed}");
    let status = suite("netns").arg(name).env("WEIR_BIN", "/usr/bin/weir").env("WEIR_RIG_BIN", "/init").status();
    let status = status.context("starting the suite")?;
    ensure!(status.success(), "the tests {name} of the netns suite ended with {status}");
    Ok(name.to_owned())
}

/// In a process of its own, so that a crash of the runner is one failed check.
fn kernel_suite(scenarios: Option<&str>) -> Result<String> {
    let status = suite("kernel").args(scenarios).status().context("starting the suite")?;
    ensure!(status.success(), "the kernel suite ended with {status}");
    Ok("scenarios".to_owned())
}

fn suite(name: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(["suite", name, "--color=never"]).current_dir("/").stdin(Stdio::null());
    command
}
