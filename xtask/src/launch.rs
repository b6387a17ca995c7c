//! `cargo xtask demo`, `bench` and `build-ebpf --report`: build everything, then become `weir-rig`, whose exit
//! code is ours.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};

use crate::{
    build_ebpf, run,
    setup::{self, Scope},
    toolchain::Choice,
    workspace,
};

/// The demo measures nothing: the quicker build is the better one.
pub(crate) fn demo(args: &[OsString]) -> Result<ExitCode> {
    launch("debug", &[], "demo", args)
}

/// The load passes through the rig's own echo servers and the agent's programs: with optimisation.
pub(crate) fn bench(args: &[OsString]) -> Result<ExitCode> {
    launch("release", &["--release"], "bench", args)
}

/// For `build-ebpf --report`, which has built the kernel object: the table of the programs.
pub(crate) fn programs() -> Result<ExitCode> {
    build_and_become_rig("debug", &[], "programs", &[])
}

fn launch(profile_dir: &str, profile_args: &[&str], command: &str, args: &[OsString]) -> Result<ExitCode> {
    setup::ensure(Scope::All)?;
    build_ebpf::build(Choice::of_environment()?)?;
    build_and_become_rig(profile_dir, profile_args, command, args)
}

fn build_and_become_rig(
    profile_dir: &str,
    profile_args: &[&str],
    command: &str,
    args: &[OsString],
) -> Result<ExitCode> {
    println!("building the agent and the rig");
    let packages = ["--locked", "--package", "proxy-agent", "--package", "proxy-rig", "--bins"];
    run::run(workspace::cargo().arg("build").args(packages).args(profile_args))?;

    let rig = workspace::binary(profile_dir, "weir-rig")?;
    let mut rig_command = if run::is_root() {
        Command::new(&rig)
    } else if run::find_program("sudo").is_some() {
        println!("network namespaces and BPF programs need root: continuing with sudo");
        let mut sudo = Command::new("sudo");
        sudo.arg(&rig);
        sudo
    } else {
        bail!("network namespaces and BPF programs need root; run `cargo xtask {command}` as root");
    };
    rig_command.arg(command).args(args).current_dir(workspace::root());
    let error = rig_command.exec();
    Err(error).with_context(|| format!("could not start `{}`", run::line(&rig_command)))
}
