//! The guest's whole file system: the rig as init process, the programs that it calls and their libraries, modules and
//! scenarios, as an archive in the format that the kernel unpacks at boot (Documentation/driver-api/early-userspace).

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::{modules, packages::Kernel};
use crate::{run, workspace};

/// Called by the guest's checks and by the kernel suite.
const PROGRAMS: [&str; 2] = ["ip", "tc"];
const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const FILE: u32 = 0o100_644;

/// The workspace's own programs.
pub(super) struct Binaries {
    /// The init process.
    pub(super) rig: PathBuf,
    pub(super) agent: PathBuf,
}

/// `work` is a directory for intermediate files.
pub(super) fn write(to: &Path, kernel: &Kernel, binaries: &Binaries, work: &Path) -> Result<()> {
    let mut archive = Archive::default();
    for directory in ["/proc", "/sys", "/dev", "/tmp", "/run", "/modules", "/usr", "/usr/bin"] {
        archive.directory(Path::new(directory))?;
    }
    let Binaries { rig, agent } = binaries;
    let mut libraries = libraries_of(rig)?;
    libraries.append(&mut libraries_of(agent)?);
    archive.file(Path::new("/init"), EXECUTABLE, &without_symbols(rig, work)?)?;
    archive.file(Path::new("/usr/bin/weir"), EXECUTABLE, &without_symbols(agent, work)?)?;
    for name in PROGRAMS {
        let program = run::find_program(name).with_context(|| format!("no program {name}"))?;
        libraries.append(&mut libraries_of(&program)?);
        archive.file(&Path::new("/usr/bin").join(name), EXECUTABLE, &read(&program)?)?;
    }
    for library in libraries {
        archive.file(&library, EXECUTABLE, &read(&library)?)?;
    }
    let modules = modules::in_order(&kernel.modules)?;
    for module in &modules {
        archive.file(&Path::new("/modules").join(&module.name), FILE, &module.content)?;
    }
    let order: String = modules.iter().map(|module| format!("{}\n", module.name)).collect();
    archive.file(Path::new("/modules/order"), FILE, order.as_bytes())?;
    archive.tree(&workspace::root().join("scenarios"), Path::new("/scenarios"))?;
    archive.finish(to)
}

/// A debug build is ten times as large as what runs of it.
fn without_symbols(program: &Path, work: &Path) -> Result<Vec<u8>> {
    let stripped = work.join("stripped");
    run::run(Command::new("strip").arg("-o").arg(&stripped).arg(program))?;
    let content = read(&stripped)?;
    fs::remove_file(&stripped).with_context(|| format!("removing {}", stripped.display()))?;
    Ok(content)
}

/// The shared libraries of a program and the loader, at the paths where the loader looks for them.
fn libraries_of(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let output = run::capture(Command::new("ldd").arg(program))?;
    let libraries: BTreeSet<_> = output.lines().filter_map(library).collect();
    ensure!(!libraries.is_empty(), "ldd {} names no library", program.display());
    Ok(libraries)
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)` or `/lib64/ld-linux-x86-64.so.2 (0x...)`.
fn library(line: &str) -> Option<PathBuf> {
    line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// A cpio archive of the kind `newc`.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<PathBuf>,
}

impl Archive {
    fn directory(&mut self, path: &Path) -> Result<()> {
        self.parents(path)?;
        if self.names.insert(path.to_owned()) { self.entry(path, DIRECTORY, &[]) } else { Ok(()) }
    }

    fn file(&mut self, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
        self.parents(path)?;
        self.names.insert(path.to_owned());
        self.entry(path, mode, content)
    }

    /// A directory of the host with all that lies in it.
    fn tree(&mut self, from: &Path, to: &Path) -> Result<()> {
        self.directory(to)?;
        for entry in from.read_dir().with_context(|| format!("reading {}", from.display()))? {
            let entry = entry?;
            let target = to.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                self.tree(&entry.path(), &target)?;
            } else {
                self.file(&target, FILE, &read(&entry.path())?)?;
            }
        }
        Ok(())
    }

    fn parents(&mut self, path: &Path) -> Result<()> {
        match path.parent() {
            Some(parent) if parent != Path::new("/") => self.directory(parent),
            _ => Ok(()),
        }
    }

    /// Header, name and content, each padded to four bytes. The fields: inode, mode, uid, gid, links, time, size, device of
    /// the file (two), its own device (two), length of the name with its zero, checksum (unused).
    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
        let name = path.to_str().context("a path that is not UTF-8")?.trim_start_matches('/');
        let inode = self.names.len() as u32;
        let size = u32::try_from(content.len()).context("a file beyond 4 GiB")?;
        let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            write!(self.bytes, "{field:08x}")?;
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self, to: &Path) -> Result<()> {
        self.entry(Path::new("TRAILER!!!"), 0, &[])?;
        fs::write(to, &self.bytes).with_context(|| format!("writing {}", to.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let path = |text: &str| library(text).map(|path| path.display().to_string());
        assert_eq!(path("\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f)").as_deref(), Some("/lib/x/libc.so.6"));
        assert_eq!(path("\t/lib64/ld-linux-x86-64.so.2 (0x00007f)").as_deref(), Some("/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(path("\tlinux-vdso.so.1 (0x00007ffd)"), None);
    }

    #[test]
    fn entries_are_padded_and_parents_come_first() {
        let mut archive = Archive::default();
        archive.file(Path::new("/a/b"), FILE, b"12345").expect("valid");
        archive.file(Path::new("/a/c"), FILE, b"").expect("valid");
        assert_eq!(archive.bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&archive.bytes).into_owned();
        assert_eq!(text.matches("070701").count(), 3);
        // Header of 110 bytes, name of two: the content begins at 112.
        assert!(text.find("a/b").is_some_and(|at| at > text.find("a\0").expect("directory")));
    }
}
