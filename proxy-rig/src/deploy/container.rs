//! A container as a runtime makes it out of a pod's spec: root, mounts, capabilities, environment. `weir-rig container`
//! becomes the program of one; the network namespace and the cgroup are those of the caller, as with hostNetwork.

use std::{
    convert::Infallible,
    fs::{self, Permissions},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::prctl::set_no_new_privs,
    unistd::{chdir, pivot_root},
};
use serde::{Deserialize, Serialize};

use super::capabilities;

const NONE: Option<&str> = None;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Container {
    /// The unpacked image.
    pub root: PathBuf,
    /// Program and arguments.
    pub command: Vec<String>,
    pub env: Vec<(String, String)>,
    pub binds: Vec<Bind>,
    /// Whether there are /proc and /sys at all; every runtime mounts them.
    pub system_mounts: bool,
    pub read_only_root: bool,
    pub privileged: bool,
    /// Without `CAP_`; of no meaning to a privileged container.
    pub capabilities: Vec<String>,
    pub no_new_privileges: bool,
}

/// A directory of the node in the container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bind {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read_only: bool,
}

impl Container {
    /// Returns only if something failed. Mounts go with the process: they are in a namespace of its own.
    pub fn exec(&self) -> Result<Infallible> {
        unshare(CloneFlags::CLONE_NEWNS).context("unshare")?;
        // Mounts of the node still arrive (HostToContainer), none of these leave.
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE).context("slave mounts")?;
        bind(&self.root, &self.root, false)?;
        self.mount_all()?;
        if self.read_only_root {
            read_only(&self.root)?;
        }
        chdir(&self.root).context("entering the root")?;
        pivot_root(".", ".").context("pivot_root")?;
        umount2(".", MntFlags::MNT_DETACH).context("leaving the old root")?;
        chdir("/").context("/")?;
        if !self.privileged {
            capabilities::keep_only(&self.capabilities)?;
        }
        if self.no_new_privileges {
            set_no_new_privs().context("no_new_privs")?;
        }
        let (program, args) = self.command.split_first().context("no program")?;
        let env = self.env.iter().map(|(name, value)| (name, value));
        Err(Command::new(program).args(args).env_clear().envs(env).exec()).context(program.clone())
    }

    fn mount_all(&self) -> Result<()> {
        if self.system_mounts {
            let (proc, sys) = (self.inside(Path::new("/proc")), self.inside(Path::new("/sys")));
            fs::create_dir_all(&proc)?;
            bind(Path::new("/proc"), &proc, false)?;
            fs::create_dir_all(&sys)?;
            mount(Some("sysfs"), &sys, Some("sysfs"), MsFlags::empty(), NONE).context("sysfs")?;
            if !self.privileged {
                let sysctls = proc.join("sys");
                bind(&sysctls, &sysctls, true)?;
                read_only(&sys)?;
            }
        }
        for Bind { source, target, read_only } in &self.binds {
            let at = self.inside(target);
            if source.is_dir() {
                fs::create_dir_all(&at)
            } else {
                fs::create_dir_all(at.parent().unwrap_or(&at)).and_then(|()| fs::write(&at, ""))
            }
            .with_context(|| format!("mount point {}", at.display()))?;
            bind(source, &at, *read_only)?;
        }
        Ok(())
    }

    fn inside(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// As the argument of `weir-rig container`.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("writing a container's spec")?;
        fs::write(path, text).with_context(|| path.display().to_string())?;
        fs::set_permissions(path, Permissions::from_mode(0o600)).with_context(|| path.display().to_string())
    }

    pub fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }
}

/// With all that is mounted below; `read_only` holds for the top alone, as in Kubernetes.
fn bind(source: &Path, target: &Path, read_only_too: bool) -> Result<()> {
    if !source.exists() {
        bail!("{} is not there", source.display());
    }
    mount(Some(source), target, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
        .with_context(|| format!("mounting {} at {}", source.display(), target.display()))?;
    if read_only_too { read_only(target) } else { Ok(()) }
}

fn read_only(path: &Path) -> Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(NONE, path, NONE, flags, NONE).with_context(|| format!("{} read-only", path.display()))
}
