//! Finds the cgroup2 hierarchy and the bpf filesystem in the mount table.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

const BPFFS: &str = "/sys/fs/bpf";

/// Where cgroup2 is mounted: /sys/fs/cgroup, or below it on hybrid machines.
pub(super) fn cgroup2() -> Result<PathBuf> {
    let table = read_table()?;
    find(&table, "cgroup2").context("no cgroup2 filesystem is mounted")
}

/// Where bpffs is mounted. It is mounted at its usual place if it is nowhere, and stays there:
/// it belongs to the machine, not to a run.
pub(super) fn bpffs() -> Result<PathBuf> {
    if let Some(path) = existing_bpffs()? {
        return Ok(path);
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .with_context(|| format!("mounting bpffs at {BPFFS}"))?;
    Ok(PathBuf::from(BPFFS))
}

pub(super) fn existing_bpffs() -> Result<Option<PathBuf>> {
    Ok(find(&read_table()?, "bpf"))
}

fn read_table() -> Result<String> {
    fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")
}

/// Fields of a line: device, mount point, type, options.
fn find(table: &str, fstype: &str) -> Option<PathBuf> {
    table.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let point = fields.nth(1)?;
        (fields.next()? == fstype).then(|| PathBuf::from(point))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_decides_not_the_path() {
        let table = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(find(table, "cgroup2"), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(find(table, "bpf"), None);
    }
}
