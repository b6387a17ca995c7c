//! Where everything that outlives the agent is pinned: `<pin-root>/v<ABI_VERSION>/MAP` and `.../links/PROGRAM[-IFINDEX]`.
//! `v<ABI_VERSION>-previous` are tables of other capacities, while they are copied; the directory `incomplete` in one of them
//! says that another one counts. The BPF file system allows no dots in names.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use proxy_common::abi::{ABI_VERSION, names};

pub const DEFAULT_PIN_ROOT: &str = "/sys/fs/bpf/weir";
const INCOMPLETE: &str = "incomplete";
const PREVIOUS: &str = "previous";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    root: PathBuf,
    /// Of one ABI version.
    dir: PathBuf,
}

impl Pins {
    /// The pins of this build's ABI version.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        let dir = root.join(format!("v{ABI_VERSION}"));
        Self { root, dir }
    }

    /// The pins of every ABI version below `root`.
    pub fn all_versions(root: &Path) -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix('v'));
            let number = number.map(|number| number.split('-').next().unwrap_or_default());
            if number.is_some_and(|number| number.parse::<u32>().is_ok()) && entry.file_type()?.is_dir() {
                found.push(Self { root: root.to_owned(), dir: entry.path() });
            }
        }
        found.sort_by(|a, b| a.dir.cmp(&b.dir));
        Ok(found)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn links(&self) -> PathBuf {
        self.dir.join("links")
    }

    pub fn link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }

    pub fn create(&self) -> io::Result<()> {
        fs::create_dir_all(self.links())
    }

    /// Other versions, and own tables that were set aside.
    pub(super) fn others(&self) -> io::Result<Vec<Self>> {
        let mut others = Self::all_versions(&self.root)?;
        others.retain(|other| other != self);
        Ok(others)
    }

    /// Renames the directory: its maps do not fit, and are to be copied.
    pub(super) fn set_aside(&self) -> io::Result<()> {
        let name = |number: u32| self.root.join(format!("v{ABI_VERSION}-{PREVIOUS}{number}"));
        let free = (1..).map(name).find(|path| !path.exists());
        fs::rename(&self.dir, free.expect("invariant: there are more numbers than directories"))
    }

    /// Whether what is pinned here is what counts.
    pub(super) fn is_ready(&self) -> bool {
        !self.is_incomplete() && self.map(names::SWITCHES).exists()
    }

    pub(super) fn is_incomplete(&self) -> bool {
        self.dir.join(INCOMPLETE).exists()
    }

    pub(super) fn mark_incomplete(&self) -> io::Result<()> {
        fs::create_dir_all(self.dir.join(INCOMPLETE))
    }

    pub(super) fn mark_complete(&self) -> io::Result<()> {
        match fs::remove_dir(self.dir.join(INCOMPLETE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Held by the one agent that writes the maps; given back when the process ends, however it ends.
#[derive(Debug)]
pub struct WriterLock(#[expect(dead_code, reason = "held for its Drop")] Flock<File>);

impl WriterLock {
    /// `None` if another process holds it. The BPF file system has no ordinary files, so the directory itself is locked.
    pub fn try_acquire(pin_root: &Path) -> io::Result<Option<Self>> {
        match Flock::lock(File::open(pin_root)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Self(lock))),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno.into()),
        }
    }

    /// Blocks until nobody else holds it.
    pub fn wait(pin_root: &Path) -> io::Result<Self> {
        loop {
            let file = File::open(pin_root)?;
            let waited_for = file.metadata()?.ino();
            match Flock::lock(file, FlockArg::LockExclusive) {
                // `weir cleanup` may have removed the directory, and another agent made it anew.
                Ok(lock) if fs::metadata(pin_root).is_ok_and(|now| now.ino() == waited_for) => return Ok(Self(lock)),
                Ok(_) => fs::create_dir_all(pin_root)?,
                Err((_, nix::errno::Errno::EINTR)) => {}
                Err((_, errno)) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_paths() {
        let root = tempfile::tempdir().unwrap();
        for name in ["v1", "v12", "other", "vx", "v1-previous1"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        let dirs: Vec<_> = Pins::all_versions(root.path()).unwrap().into_iter().map(|pins| pins.dir).collect();
        assert_eq!(dirs, ["v1", "v1-previous1", "v12"].map(|name| root.path().join(name)));
        let pins = Pins::new("/x");
        assert_eq!(pins.link("connect4"), Path::new(&format!("/x/v{ABI_VERSION}/links/connect4")));
    }

    #[test]
    fn what_counts_and_what_is_set_aside() {
        let root = tempfile::tempdir().unwrap();
        let pins = Pins::new(root.path());
        pins.create().unwrap();
        assert!(!pins.is_ready(), "no map yet");
        fs::write(pins.map(names::SWITCHES), "").unwrap();
        assert!(pins.is_ready() && pins.others().unwrap().is_empty());
        pins.mark_incomplete().unwrap();
        assert!(!pins.is_ready());
        pins.mark_complete().unwrap();
        for number in 1..=2 {
            pins.set_aside().unwrap();
            assert!(!pins.is_ready() && pins.others().unwrap().len() == number);
            pins.create().unwrap();
        }
    }

    #[test]
    fn one_writer() {
        let root = tempfile::tempdir().unwrap();
        let held = WriterLock::try_acquire(root.path()).unwrap();
        assert!(held.is_some());
        assert!(WriterLock::try_acquire(root.path()).unwrap().is_none());
        drop(held);
        assert!(WriterLock::try_acquire(root.path()).unwrap().is_some());
    }
}
