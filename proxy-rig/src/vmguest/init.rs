//! What an init process has to do before and after the work: mounts, modules, the way out for the report, the end.

use std::{
    convert::Infallible,
    fs::{self, File, OpenOptions},
    os::unix::fs::symlink,
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        termios::tcdrain,
    },
    unistd::{dup2_stderr, dup2_stdout},
};

/// The second serial line; the first one carries the kernel's messages.
const REPORT: &str = "/dev/ttyS1";
/// Modules as files, and the order in which they are to be inserted.
const MODULES: &str = "/modules";
const MODULE_ORDER: &str = "/modules/order";

pub(super) fn mount_all() -> Result<()> {
    let mounts = [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
        ("bpf", "/sys/fs/bpf"),
        ("cgroup2", "/sys/fs/cgroup"),
    ];
    for (kind, at) in mounts {
        if !at.starts_with("/sys/") {
            fs::create_dir_all(at).with_context(|| format!("creating {at}"))?;
        }
        match mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>) {
            // Some kernels mount devtmpfs themselves.
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(errno) => return Err(errno).with_context(|| format!("mounting {kind} at {at}")),
        }
    }
    // Where iproute2 keeps its namespaces.
    fs::create_dir_all("/var").context("creating /var")?;
    symlink("/run", "/var/run").context("/var/run")?;
    Ok(())
}

/// What this process and its children print goes to the report from here on.
pub(super) fn report_to_serial_line() -> Result<()> {
    let line = OpenOptions::new().write(true).open(REPORT).with_context(|| format!("opening {REPORT}"))?;
    dup2_stdout(&line).context("standard output")?;
    dup2_stderr(&line).context("standard error")?;
    Ok(())
}

pub(super) fn insert_modules() -> Result<String> {
    let order = fs::read_to_string(MODULE_ORDER).with_context(|| format!("reading {MODULE_ORDER}"))?;
    for name in order.lines() {
        let path = format!("{MODULES}/{name}");
        let file = File::open(&path).with_context(|| format!("opening {path}"))?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno).with_context(|| format!("inserting {name}")),
        }
    }
    Ok(order.lines().collect::<Vec<_>>().join(" "))
}

/// Waits until the report has left the serial line.
pub(super) fn power_off() -> Result<Infallible> {
    tcdrain(std::io::stdout()).context("tcdrain")?;
    match reboot(RebootMode::RB_POWER_OFF) {
        Err(errno) => bail!("power off: {errno}"),
    }
}
