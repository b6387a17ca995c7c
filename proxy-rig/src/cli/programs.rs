//! `weir-rig programs`: what this machine's verifier says of the embedded programs, as a table.

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Result, ensure};
use comfy_table::{Table, presets};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use proxy_agent::{
    loader::{Capacities, ConnectHooks, Pins, config_for, load},
    object,
};
use proxy_rig::verifier::verify_again;

pub(super) fn run() -> Result<ExitCode> {
    ensure!(nix::unistd::geteuid().is_root(), "loading programs needs root");
    let directory = tempfile::tempdir()?;
    // Pins in a BPF file system that nobody else sees and that goes with this process.
    unshare(CloneFlags::CLONE_NEWNS).context("unshare")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("private mounts")?;
    mount(Some("bpf"), directory.path(), Some("bpf"), MsFlags::empty(), none).context("mounting a BPF file system")?;
    let outcome = print(directory.path());
    nix::mount::umount(directory.path()).context("unmounting the BPF file system")?;
    outcome
}

fn print(pin_root: &Path) -> Result<ExitCode> {
    let object = object::embedded()?;
    let config = config_for("report", 0, ConnectHooks::All, false);
    let loaded = load(object, &Pins::new(pin_root), &config, &Capacities::default())?;
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["program", "instructions verified", "instructions", "stack, bytes"]);
    for row in verify_again(object, &loaded.ebpf)? {
        let numbers = [row.instructions.to_string(), row.translated.to_string()];
        table.add_row([row.program.to_owned()].into_iter().chain(numbers).chain([row.stack]));
    }
    println!("{table}");
    Ok(ExitCode::SUCCESS)
}
