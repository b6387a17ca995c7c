//! Finds a Rust toolchain that can build for the BPF target: a compiler with its library source, and a
//! bpf-linker whose LLVM is not older than the compiler's. Called by setup and build_ebpf.
//!
//! Two kinds are known. rustup's nightly with `rust-src`, with a bpf-linker from `PATH`; and the
//! distribution's own compiler, whose LLVM the distribution also packages, with a bpf-linker that
//! setup compiles against that LLVM.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;

use crate::{cache, run};

/// The release of bpf-linker that setup compiles, and the LLVM majors it can be built against.
pub(crate) const LINKER_VERSION: &str = "0.13.0";
pub(crate) const LINKER_LLVM_MAJORS: std::ops::RangeInclusive<u32> = 21..=23;
/// The distribution's compiler. rustup's proxies may also lie here; they are told by their sysroot.
const DISTRIBUTION_RUSTC: &str = "/usr/bin/rustc";

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Choice {
    /// Nightly if it is complete, else the distribution's
    Auto,
    /// rustup's nightly with rust-src, and bpf-linker in PATH
    Nightly,
    /// The distribution's rustc with its library source, and a bpf-linker for its LLVM
    Distribution,
}

impl Choice {
    /// What `WEIR_EBPF_TOOLCHAIN` asks for: the choice for commands without a flag.
    pub(crate) fn of_environment() -> Result<Self> {
        let Some(name) = env::var_os("WEIR_EBPF_TOOLCHAIN") else { return Ok(Self::Auto) };
        let name = name.to_string_lossy();
        Self::from_str(&name, true).map_err(|reason| anyhow!("WEIR_EBPF_TOOLCHAIN={name}: {reason}"))
    }
}

/// A compiler with library source, recent enough for this workspace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Compiler {
    pub(crate) rustc: PathBuf,
    pub(crate) cargo: PathBuf,
    pub(crate) version: Version,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Version {
    pub(crate) release: String,
    pub(crate) llvm_major: u32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Toolchain {
    pub(crate) compiler: Compiler,
    pub(crate) linker: PathBuf,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Compiler { rustc, version, .. } = &self.compiler;
        let Version { release, llvm_major } = version;
        write!(f, "{} (Rust {release}, LLVM {llvm_major}), {}", rustc.display(), self.linker.display())
    }
}

/// The toolchain to build with, or an error that says of each kind what is missing.
pub(crate) fn find(choice: Choice) -> Result<Toolchain> {
    let mut reasons = Vec::new();
    if choice != Choice::Distribution {
        match nightly() {
            Ok(toolchain) => return Ok(toolchain),
            Err(error) => reasons.push(format!("rustup nightly: {error:#}")),
        }
    }
    if choice != Choice::Nightly {
        match distribution_compiler().and_then(with_cached_linker) {
            Ok(toolchain) => return Ok(toolchain),
            Err(error) => reasons.push(format!("distribution: {error:#}")),
        }
    }
    bail!("no toolchain for the BPF target\n  {}", reasons.join("\n  "))
}

/// The distribution's compiler, without regard to the linker.
pub(crate) fn distribution_compiler() -> Result<Compiler> {
    let rustc = Path::new(DISTRIBUTION_RUSTC);
    if !rustc.is_file() {
        bail!("{DISTRIBUTION_RUSTC} is not there");
    }
    let sysroot = PathBuf::from(run::capture(rust_command(rustc).args(["--print", "sysroot"]))?.trim());
    // A rustup proxy in /usr/bin answers with a sysroot below the user's home.
    if !sysroot.starts_with("/usr") {
        bail!("{DISTRIBUTION_RUSTC} is a proxy of rustup, not the distribution's compiler");
    }
    let cargo = rustc.with_file_name("cargo");
    if !cargo.is_file() {
        bail!("{} is not there", cargo.display());
    }
    compiler_at(rustc.to_owned(), cargo, &sysroot)
}

/// Whether this bpf-linker starts: after an upgrade of LLVM its shared library may be gone.
pub(crate) fn linker_starts(linker: &Path) -> bool {
    let mut command = rust_command(linker);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

pub(crate) fn cached_linker(llvm_major: u32) -> PathBuf {
    cache::linker_root(LINKER_VERSION, llvm_major).join("bin/bpf-linker")
}

/// A command of another toolchain than the one that runs xtask: nothing that cargo, rustup or the
/// caller set for the host build may reach it. Where crates come from stays as it is.
pub(crate) fn rust_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_of_host_build) {
            command.env_remove(name);
        }
    }
    command
}

fn is_of_host_build(name: &str) -> bool {
    const KEPT: [&str; 7] =
        ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_SOURCE_", "CARGO_TERM_", "RUST_BACKTRACE"];
    let of_toolchain = ["CARGO", "RUST", "LLVM_"].iter().any(|prefix| name.starts_with(prefix));
    // rustup and cargo prepend the host toolchain's libraries to LD_LIBRARY_PATH.
    (of_toolchain && !KEPT.iter().any(|kept| name.starts_with(kept))) || matches!(name, "LD_LIBRARY_PATH" | "OUT_DIR")
}

fn nightly() -> Result<Toolchain> {
    let sysroot = nightly_sysroot().context("not installed")?;
    let compiler = compiler_at(sysroot.join("bin/rustc"), sysroot.join("bin/cargo"), &sysroot)?;
    let llvm_major = compiler.version.llvm_major;
    let linker = run::find_program("bpf-linker")
        .or_else(|| Some(cached_linker(llvm_major)).filter(|linker| linker.is_file()))
        .ok_or_else(|| anyhow!("no bpf-linker in PATH"))?;
    if !linker_starts(&linker) {
        bail!("{} does not start", linker.display());
    }
    Ok(Toolchain { compiler, linker })
}

/// `nightly-HOST`, or else the latest dated nightly.
fn nightly_sysroot() -> Option<PathBuf> {
    let rustup_home = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".rustup")))?;
    let mut names: Vec<String> = rustup_home
        .join("toolchains")
        .read_dir()
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.retain(|name| name.starts_with("nightly-"));
    // Letters sort after digits: the undated name comes last.
    names.sort();
    Some(rustup_home.join("toolchains").join(names.pop()?))
}

fn with_cached_linker(compiler: Compiler) -> Result<Toolchain> {
    let linker = cached_linker(compiler.version.llvm_major);
    if !linker_starts(&linker) {
        bail!("no working bpf-linker at {}", linker.display());
    }
    Ok(Toolchain { compiler, linker })
}

fn compiler_at(rustc: PathBuf, cargo: PathBuf, sysroot: &Path) -> Result<Compiler> {
    let version = Version::parse(&run::capture(rust_command(&rustc).arg("-vV"))?)?;
    let needed = env!("CARGO_PKG_RUST_VERSION");
    if minor(&version.release) < minor(needed) {
        bail!("{} is Rust {}, needed is {needed}", rustc.display(), version.release);
    }
    let source = sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml");
    if !source.is_file() {
        bail!("Rust {} has no library source (rust-src)", version.release);
    }
    Ok(Compiler { rustc, cargo, version })
}

impl Version {
    /// Reads the output of `rustc -vV`.
    fn parse(output: &str) -> Result<Self> {
        let field = |name: &str| output.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let release = field("release:").context("`rustc -vV` names no release")?;
        let llvm = field("LLVM version:").context("`rustc -vV` names no LLVM version")?;
        let llvm_major = llvm.split('.').next().unwrap_or(llvm);
        let llvm_major = llvm_major.parse().with_context(|| format!("LLVM version `{llvm}`"))?;
        Ok(Self { release: release.to_owned(), llvm_major })
    }
}

/// The second number of a Rust release; the first has been 1 since 2015.
fn minor(release: &str) -> u32 {
    release.split('.').nth(1).and_then(|minor| minor.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\n\
        binary: rustc\nhost: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";

    #[test]
    fn version_is_read_from_verbose_output() {
        let version = Version::parse(DEBIAN).expect("valid");
        assert_eq!(version, Version { release: "1.96.0".to_owned(), llvm_major: 22 });
        let nightly = DEBIAN.replace("1.96.0", "1.97.0-nightly").replace("22.1.8", "23.0");
        assert_eq!(Version::parse(&nightly).expect("valid").llvm_major, 23);
    }

    #[test]
    fn a_compiler_without_llvm_is_an_error() {
        let error = Version::parse("release: 1.96.0\n").expect_err("no LLVM line");
        assert_eq!(error.to_string(), "`rustc -vV` names no LLVM version");
        assert!(Version::parse("release: 1.96.0\nLLVM version: git\n").is_err());
    }

    #[test]
    fn minor_versions_compare_as_numbers() {
        assert_eq!(minor("1.97.0-nightly"), 97);
        assert!(minor("1.100.0") > minor("1.95"));
    }

    #[test]
    fn variables_of_the_host_build_are_removed() {
        for name in ["RUSTC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN", "CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR"] {
            assert!(is_of_host_build(name), "{name}");
        }
        for name in ["PATH", "CARGO_HOME", "CARGO_REGISTRIES_X_INDEX", "RUST_BACKTRACE"] {
            assert!(!is_of_host_build(name), "{name}");
        }
    }
}
