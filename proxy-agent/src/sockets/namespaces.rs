//! The network namespaces of the node: found by the mounts of container runtimes and by the processes of the host, each once.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::statfs::{FsType, statfs},
};

use super::SocketsConfig;

const OWN: &str = "/proc/thread-self/ns/net";
/// NSFS_MAGIC of include/uapi/linux/magic.h.
const NSFS: FsType = FsType(0x6e73_6673);
/// More than any node has pods. Those beyond are left out, which counts as unreachable.
const MOST: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub(super) enum NamespaceError {
    #[error("open {}: {error}", path.display())]
    Open { path: PathBuf, error: io::Error },
    #[error("enter {}: {error}", path.display())]
    Enter { path: PathBuf, error: nix::errno::Errno },
    #[error("more than {MOST} network namespaces")]
    TooMany,
}

/// Belongs to a thread of its own, which goes from namespace to namespace.
pub(super) struct Namespaces {
    own: Namespace,
    dirs: Vec<PathBuf>,
    proc: PathBuf,
}

pub(super) struct Namespace {
    file: File,
    path: PathBuf,
}

/// All namespaces but the own one.
#[derive(Default)]
pub(super) struct Others {
    pub(super) found: Vec<Namespace>,
    pub(super) errors: Vec<NamespaceError>,
}

impl Namespaces {
    pub(super) fn new(config: &SocketsConfig) -> Result<Self, NamespaceError> {
        let own = Namespace::open(PathBuf::from(OWN))?;
        Ok(Self { own, dirs: config.netns_dirs.clone(), proc: config.host_proc.clone() })
    }

    /// The one in which the agent was started.
    pub(super) fn own(&self) -> &Namespace {
        &self.own
    }

    /// Namespaces that go while they are looked for are none.
    pub(super) fn others(&self) -> Others {
        let mut others = Others::default();
        let mut seen: HashSet<u64> = self.own.file.metadata().map(|it| it.ino()).into_iter().collect();
        let mounts = self.dirs.iter().flat_map(|dir| entries(dir)).filter(|path| is_namespace(path));
        let processes = entries(&self.proc).into_iter().filter(|path| is_process(path)).map(|path| path.join("ns/net"));
        for path in mounts.chain(processes) {
            let found = fs::metadata(&path).map_err(|error| NamespaceError::Open { path: path.clone(), error });
            match found.map(|it| seen.insert(it.ino())) {
                Ok(false) => {}
                Ok(true) if others.found.len() >= MOST => {
                    others.errors.push(NamespaceError::TooMany);
                    break;
                }
                Ok(true) => others.take(Namespace::open(path)),
                Err(error) => others.take(Err(error)),
            }
        }
        others
    }
}

impl Others {
    fn take(&mut self, namespace: Result<Namespace, NamespaceError>) {
        match namespace {
            Ok(namespace) => self.found.push(namespace),
            Err(NamespaceError::Open { error, .. }) if is_gone(&error) || is_hidden(&error) => {}
            Err(error) => self.errors.push(error),
        }
    }
}

impl Namespace {
    fn open(path: PathBuf) -> Result<Self, NamespaceError> {
        match File::open(&path) {
            Ok(file) => Ok(Self { file, path }),
            Err(error) => Err(NamespaceError::Open { path, error }),
        }
    }

    /// Moves the calling thread.
    pub(super) fn enter(&self) -> Result<(), NamespaceError> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .map_err(|error| NamespaceError::Enter { path: self.path.clone(), error })
    }
}

/// A directory that is not there has no entries: each runtime has another one.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(dir).into_iter().flatten().flatten();
    listed.map(|entry| entry.path()).collect()
}

fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|it| it.filesystem_type() == NSFS)
}

fn is_process(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.bytes().all(|it| it.is_ascii_digit()))
}

/// ESRCH: the process has ended, or is a thread of the kernel.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// Without CAP_SYS_PTRACE most processes hide theirs. Nearly all of these are the host's own or are found by their mounts; that
/// nothing at all was found is told by the caller.
fn is_hidden(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_namespace_is_not_among_the_others() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("no-namespace"), "").unwrap();
        let process = dir.path().join("4711/ns");
        fs::create_dir_all(&process).unwrap();
        std::os::unix::fs::symlink(OWN, process.join("net")).unwrap();
        fs::create_dir_all(dir.path().join("4712")).unwrap();
        let netns_dirs = vec![dir.path().to_owned(), "/nonexistent".into()];
        let config = SocketsConfig { destroy: true, netns_dirs, host_proc: dir.path().to_owned() };
        let others = Namespaces::new(&config).unwrap().others();
        assert!(others.found.is_empty() && others.errors.is_empty(), "{:?}", others.errors);
    }
}
