//! One run of qemu, ended after a time limit. The guest has two serial lines, which qemu writes to files.

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::run;

/// The kernel's messages.
pub(super) const CONSOLE: &str = "console.txt";
/// What the guest's init process says.
pub(super) const REPORT: &str = "report.txt";

/// Maps are made with their full capacity.
const MEMORY: &str = "2048M";
/// `panic=-1` with `-no-reboot` ends qemu when the init process dies. What follows `--` are arguments of the init process, and
/// a variable that the kernel does not know goes into its environment.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 loglevel=5 mitigations=off no_timer_check random.trust_cpu=on rdinit=/init PATH=/usr/sbin:/usr/bin -- vm-guest";

/// What the guest is to do, and how long at most.
#[derive(Clone, Copy)]
pub(super) struct Guest<'a> {
    /// Part of the names of the scenarios; all without it.
    pub(super) scenarios: Option<&'a str>,
    /// Also tests with real agents and sockets.
    pub(super) sockets: bool,
    pub(super) limit: Duration,
}

/// Where qemu lies.
pub(super) struct Qemu {
    pub(super) program: PathBuf,
    /// Where it was unpacked, unless it is installed.
    pub(super) root: Option<PathBuf>,
}

pub(super) enum Ended {
    ByItself,
    Failed(ExitStatus),
    ByLimit(Duration),
}

impl Qemu {
    pub(super) fn run(&self, kernel: &Path, initramfs: &Path, directory: &Path, guest: Guest<'_>) -> Result<Ended> {
        let mut command = self.command();
        command.args(["-machine", "pc,accel=tcg", "-cpu", "max", "-smp", "1", "-m", MEMORY]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs).arg("-append");
        let sockets = if guest.sockets { "--sockets" } else { "" };
        command.arg(format!("{COMMAND_LINE} {sockets} {}", guest.scenarios.unwrap_or_default()));
        for file in [CONSOLE, REPORT] {
            let mut to = OsString::from("file:");
            to.push(directory.join(file));
            command.arg("-serial").arg(to);
        }
        command.stdin(Stdio::null());
        let mut child = command.spawn().with_context(|| format!("could not start `{}`", run::line(&command)))?;
        wait(&mut child, guest.limit)
    }

    /// With low priority: emulation takes all of a core for as long as it runs.
    fn command(&self) -> Command {
        let mut command = Command::new("nice");
        command.args(["-n", "10"]).arg(&self.program);
        if let Some(root) = &self.root {
            let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|path| root.join(path));
            let joined = libraries.each_ref().map(|path| path.as_os_str()).join(&OsString::from(":"));
            command.env("LD_LIBRARY_PATH", joined);
            for data in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(root.join(data));
            }
        }
        command
    }
}

fn wait(child: &mut Child, limit: Duration) -> Result<Ended> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().context("waiting for qemu")? {
            return Ok(if status.success() { Ended::ByItself } else { Ended::Failed(status) });
        }
        if start.elapsed() > limit {
            child.kill().context("ending qemu")?;
            child.wait().context("waiting for qemu")?;
            return Ok(Ended::ByLimit(limit));
        }
        thread::sleep(Duration::from_millis(100));
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByItself => f.write_str("it switched itself off"),
            Self::Failed(status) => write!(f, "qemu ended with {status}"),
            Self::ByLimit(limit) => write!(f, "ended after {} s", limit.as_secs()),
        }
    }
}
