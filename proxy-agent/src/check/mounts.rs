//! The BPF file system for the pins, and the cgroup2 hierarchy for the connect hooks.

use std::path::Path;

use super::{Cgroup, Finding};
use crate::node::{BPFFS, cgroup2_root, on_bpffs};

const AREA: &str = "mounts";

pub(super) fn check(pin_root: &Path, cgroup: Option<&Cgroup>) -> Vec<Finding> {
    let mut findings = vec![pins(pin_root)];
    findings.extend(cgroup.map(hooks));
    findings
}

fn pins(pin_root: &Path) -> Finding {
    match on_bpffs(pin_root) {
        Ok(true) => Finding::ok(AREA, format!("{} lies on a BPF file system", pin_root.display())),
        Ok(false) if pin_root.starts_with(BPFFS) => Finding::warning(
            AREA,
            format!("no BPF file system is mounted at {BPFFS}"),
            "the agent mounts one; in a container mount the host's there, or pins do not outlive the container",
        ),
        Ok(false) => Finding::error(
            AREA,
            format!("{} lies on no BPF file system", pin_root.display()),
            "mount one (mount -t bpf bpf DIRECTORY), or name a directory on one by --pin-root",
        ),
        Err(error) => Finding::error(AREA, error.to_string(), "mount /proc"),
    }
}

fn hooks(cgroup: &Cgroup) -> Finding {
    const MOUNT: &str =
        "mount one (mount -t cgroup2 none DIRECTORY), in a container the host's; or give --connect-hooks off";
    let root = match cgroup {
        Cgroup::Root => cgroup2_root(),
        Cgroup::At(path) => Ok(path.clone()),
    };
    match root {
        Err(error) => Finding::error(AREA, error.to_string(), MOUNT),
        // Every cgroup2 directory has this file.
        Ok(path) if !path.join("cgroup.procs").exists() => {
            Finding::error(AREA, format!("{} is no cgroup2 directory", path.display()), MOUNT)
        }
        // Every one but the root has this one.
        Ok(path) if *cgroup == Cgroup::Root && path.join("cgroup.type").exists() => Finding::warning(
            AREA,
            format!(
                "the root of the cgroup2 file system at {} is not the host's: sockets outside of it are not translated",
                path.display()
            ),
            "mount the host's hierarchy into the container, or name it by --cgroup-root",
        ),
        Ok(path) => Finding::ok(AREA, format!("the connect hooks go to {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Level, *};

    #[test]
    fn directories_that_are_no_cgroup_or_no_root() {
        let dir = tempfile::tempdir().unwrap();
        let at = Cgroup::At(dir.path().to_owned());
        assert_eq!(hooks(&at).level, Level::Error);
        std::fs::write(dir.path().join("cgroup.procs"), "").unwrap();
        assert_eq!(hooks(&at).level, Level::Ok);
        assert_eq!(pins(dir.path()).level, Level::Error);
        assert!(check(dir.path(), None).len() == 1);
    }
}
