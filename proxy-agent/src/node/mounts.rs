//! Finds the cgroup2 hierarchy and the BPF file system in the mount table; mounts the latter if it is not there.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::mount::{MsFlags, mount};

const MOUNT_TABLE: &str = "/proc/thread-self/mounts";
/// Where it is on most systems.
pub const BPFFS: &str = "/sys/fs/bpf";

#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("read {MOUNT_TABLE}: {0}")]
    Table(#[source] io::Error),
    #[error(
        "no cgroup2 file system is mounted (looked in {MOUNT_TABLE}); mount one or name a directory by --cgroup-root"
    )]
    NoCgroup2,
    #[error("create {}: {error}", path.display())]
    Create { path: PathBuf, error: io::Error },
    #[error("mount a BPF file system at {BPFFS}: {0}")]
    Mount(#[source] nix::errno::Errno),
    #[error("{} lies on no BPF file system, which is needed for pins", .0.display())]
    NotBpffs(PathBuf),
}

/// The first cgroup2 mount: /sys/fs/cgroup on unified systems, /sys/fs/cgroup/unified on hybrid ones.
pub fn cgroup2_root() -> Result<PathBuf, MountError> {
    let table = fs::read_to_string(MOUNT_TABLE).map_err(MountError::Table)?;
    mounts_of(&table, "cgroup2").next().ok_or(MountError::NoCgroup2)
}

/// Makes sure that `pin_root` exists and lies on a BPF file system; mounts one at /sys/fs/bpf if that is where it should be.
pub fn ensure_bpffs(pin_root: &Path) -> Result<(), MountError> {
    let mounted = on_bpffs(pin_root)?;
    if !mounted && pin_root.starts_with(BPFFS) {
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>).map_err(MountError::Mount)?;
        tracing::info!(path = BPFFS, "mounted a BPF file system");
    } else if !mounted {
        return Err(MountError::NotBpffs(pin_root.to_owned()));
    }
    fs::create_dir_all(pin_root).map_err(|error| MountError::Create { path: pin_root.to_owned(), error })
}

pub fn on_bpffs(path: &Path) -> Result<bool, MountError> {
    let table = fs::read_to_string(MOUNT_TABLE).map_err(MountError::Table)?;
    Ok(mounts_of(&table, "bpf").any(|mount| path.starts_with(mount)))
}

/// Mount points of one file system type, in the order of the table.
fn mounts_of<'a>(table: &'a str, kind: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
    table.lines().filter_map(move |line| {
        let mut fields = line.split(' ');
        let point = fields.nth(1)?;
        (fields.next()? == kind).then(|| PathBuf::from(unescape(point)))
    })
}

/// The kernel writes blanks, tabs, line ends and backslashes as three octal digits (seq_path's mangle_path).
fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                text.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                text.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
proc /proc proc rw,nosuid 0 0
tmpfs /sys/fs/cgroup tmpfs ro 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0
bpf /run/my\\040pins bpf rw,mode=700 0 0
cgroup2 /second cgroup2 rw 0 0
";

    #[test]
    fn finds_the_first_mount_of_a_type() {
        assert_eq!(mounts_of(HYBRID, "cgroup2").next(), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mounts_of(HYBRID, "cgroup2").count(), 2);
        assert_eq!(mounts_of(HYBRID, "bpf").next(), Some("/run/my pins".into()));
        assert_eq!(mounts_of("tmpfs / tmpfs rw 0 0\n", "cgroup2").next(), None);
        assert_eq!(mounts_of("broken\n\n", "cgroup2").next(), None);
    }

    #[test]
    fn octal_escapes() {
        assert_eq!(unescape("/a\\134b\\011c"), "/a\\b\tc");
        assert_eq!(unescape("/odd\\9"), "/odd\\9");
    }
}
