//! Starts programs inside a namespace and a cgroup.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io,
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use super::netns;

/// Where a process shall live.
#[derive(Debug, Clone)]
pub struct Placement {
    pub netns: String,
    pub cgroup: PathBuf,
}

impl Placement {
    /// A command that moves itself into the namespace and the cgroup between fork and exec.
    ///
    /// Its own process group keeps a Ctrl-C at the terminal away from it: the owner ends it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let (namespace, mut procs) = self.open()?;
        let mut command = Command::new(program);
        command.process_group(0);
        // SAFETY: between fork and exec the closure only makes two system calls (write, setns)
        // on descriptors opened before the fork; it neither allocates nor takes locks.
        unsafe {
            command.pre_exec(move || enter(&namespace, &mut procs));
        }
        Ok(command)
    }

    /// Moves the calling process there and becomes `program`. Returns only if that failed.
    pub fn exec(&self, program: &OsStr, args: &[std::ffi::OsString]) -> Result<std::convert::Infallible> {
        let (namespace, mut procs) = self.open()?;
        enter(&namespace, &mut procs)
            .with_context(|| format!("entering {} and {}", self.netns, self.cgroup.display()))?;
        Err(Command::new(program).args(args).exec()).with_context(|| format!("starting {}", program.to_string_lossy()))
    }

    fn open(&self) -> Result<(File, File)> {
        let namespace = File::open(netns::path(&self.netns)).with_context(|| format!("namespace {}", self.netns))?;
        Ok((namespace, open_procs(&self.cgroup)?))
    }
}

fn open_procs(cgroup: &Path) -> Result<File> {
    let path = cgroup.join("cgroup.procs");
    OpenOptions::new().write(true).open(&path).with_context(|| path.display().to_string())
}

/// "0" stands for the writing process. The cgroup comes first: from then on the run's removal reaches it.
fn enter(namespace: &File, procs: &mut File) -> io::Result<()> {
    procs.write_all(b"0")?;
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
}
