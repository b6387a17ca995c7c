//! `cargo xtask setup`: finds what this machine lacks, says what and why, and installs it where it can.
//! test, demo and bench call `ensure` first; with nothing missing it takes a few milliseconds, since
//! it looks for programs and not into the package database.

use std::{env, path::Path, process::ExitCode};

use anyhow::{Context, Result, bail};

use crate::{
    apt::Apt,
    cache, run,
    toolchain::{self, Choice, Compiler, LINKER_LLVM_MAJORS, LINKER_VERSION},
    workspace,
};

/// What the caller is going to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Build and run what needs no root
    Build,
    /// Also run the rig, with its namespaces and load generator
    All,
}

struct Tool {
    program: &'static str,
    /// The first of these sets that the repositories offer is installed.
    packages: &'static [&'static [&'static str]],
    purpose: &'static str,
    scope: Scope,
}

const TOOLS: [Tool; 6] = [
    Tool {
        program: "cc",
        packages: &[&["gcc", "libc6-dev"]],
        purpose: "links every Rust program",
        scope: Scope::Build,
    },
    Tool {
        program: "ip",
        packages: &[&["iproute2"]],
        purpose: "the rig's namespaces, and looking into them",
        scope: Scope::All,
    },
    Tool {
        program: "bpftool",
        // Ubuntu has no package of this name: the program comes with the kernel's tools.
        packages: &[&["bpftool"], &["linux-tools-common", "linux-tools-generic"]],
        purpose: "prints maps and programs, in the demo and for operators",
        scope: Scope::All,
    },
    Tool {
        program: "nft",
        packages: &[&["nftables"]],
        purpose: "firewall rules of the rig's nodes",
        scope: Scope::All,
    },
    Tool {
        program: "xz",
        packages: &[&["xz-utils"]],
        purpose: "unpacks the modules of other kernels",
        scope: Scope::All,
    },
    Tool { program: "wrk", packages: &[&["wrk"]], purpose: "makes the load of the bench", scope: Scope::All },
];

const NIGHTLY_COMMANDS: &str = "rustup toolchain install nightly --component rust-src\n    \
    and a released bpf-linker in PATH (https://github.com/aya-rs/bpf-linker/releases)";

/// `setup --check`: prints what is missing; exit code 1 if anything is.
pub(crate) fn report() -> Result<ExitCode> {
    let missing = missing_tools(Scope::All);
    missing.iter().for_each(|tool| tool.announce());
    let components = missing_components();
    components.iter().for_each(|name| println!("missing: cargo {name} (a stage of `cargo xtask test`)"));
    let toolchain = toolchain::find(Choice::of_environment()?);
    match &toolchain {
        Ok(toolchain) => println!("eBPF toolchain: {toolchain}"),
        Err(error) => println!("missing: {error:#}"),
    }
    let complete = missing.is_empty() && components.is_empty() && toolchain.is_ok();
    if complete {
        println!("setup: nothing is missing");
    }
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Installs what is missing. Where that is not possible the error says what to install.
pub(crate) fn ensure(scope: Scope) -> Result<()> {
    let missing = missing_tools(scope);
    let components = missing_components();
    let choice = Choice::of_environment()?;
    let toolchain_missing = toolchain::find(choice).is_err();
    if missing.is_empty() && components.is_empty() && !toolchain_missing {
        println!("setup: nothing is missing");
        return Ok(());
    }

    // What cannot be installed does not hide what else is missing.
    let steps =
        [install_tools(&missing), install_components(&components), install_toolchain(choice, toolchain_missing)];
    let problems: Vec<String> = steps.into_iter().filter_map(|step| Some(format!("\n  {:#}", step.err()?))).collect();
    if !problems.is_empty() {
        bail!("setup is not complete{}", problems.concat());
    }
    println!("setup: complete");
    Ok(())
}

impl Tool {
    fn announce(&self) {
        println!("missing: {} ({}); package {}", self.program, self.purpose, self.packages[0].join(", "));
    }
}

fn missing_tools(scope: Scope) -> Vec<&'static Tool> {
    TOOLS
        .iter()
        .filter(|tool| scope == Scope::All || tool.scope == Scope::Build)
        .filter(|tool| run::find_program(tool.program).is_none())
        .collect()
}

fn install_tools(missing: &[&Tool]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    missing.iter().for_each(|tool| tool.announce());
    let apt =
        apt_or_advice(|| missing.iter().flat_map(|tool| tool.packages[0]).copied().collect::<Vec<_>>().join(" "))?;
    let packages: Vec<String> = missing
        .iter()
        .flat_map(|tool| {
            let offered = tool.packages.iter().find(|set| set.iter().all(|package| apt.offers(package)));
            offered.unwrap_or(&tool.packages[0]).iter().map(|package| (*package).to_owned())
        })
        .collect();
    apt.install(&packages)
}

/// rustfmt and clippy lie beside the cargo that runs us; rustup's minimal profile leaves them out.
fn missing_components() -> Vec<&'static str> {
    let Some(cargo) = env::var_os("CARGO") else { return Vec::new() };
    let directory = Path::new(&cargo).parent().unwrap_or(Path::new("")).to_owned();
    let lacks = |name: &&str| {
        let program = format!("cargo-{name}");
        !directory.join(&program).is_file() && run::find_program(&program).is_none()
    };
    ["fmt", "clippy"].into_iter().filter(lacks).collect()
}

fn install_components(missing: &[&str]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    println!("missing: cargo {} (stages of `cargo xtask test`)", missing.join(", cargo "));
    let rustup = run::find_program("rustup")
        .context("without rustup, install rustfmt and clippy for your toolchain from where it came")?;
    run::run(std::process::Command::new(rustup).args(["component", "add", "rustfmt", "clippy"]))
}

/// The distribution's compiler, the development files of its LLVM, and bpf-linker built against them.
fn install_toolchain(choice: Choice, missing: bool) -> Result<()> {
    if !missing {
        return Ok(());
    }
    println!("missing: a toolchain for the BPF target (compiles the kernel programs)");
    if choice == Choice::Nightly {
        bail!("WEIR_EBPF_TOOLCHAIN asks for nightly; please install:\n    {NIGHTLY_COMMANDS}");
    }
    let compiler = match toolchain::distribution_compiler() {
        Ok(compiler) => compiler,
        Err(_) => install_compiler()?,
    };
    install_linker(compiler.version.llvm_major)?;
    let toolchain = toolchain::find(Choice::Distribution).context("after the installation")?;
    println!("eBPF toolchain: {toolchain}");
    Ok(())
}

/// Debian carries recent compilers for its browsers as `rustc-web`, with their library source.
fn install_compiler() -> Result<Compiler> {
    const PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
    println!("missing: {} (a Rust compiler with its library source and LLVM)", PACKAGES.join(", "));
    let apt = apt_or_advice(|| {
        format!("{} (Debian's security suite), or elsewhere:\n    {NIGHTLY_COMMANDS}", PACKAGES.join(" "))
    })?;
    if !PACKAGES.iter().all(|package| apt.offers(package)) {
        bail!("no repository of this system offers {}; install instead:\n    {NIGHTLY_COMMANDS}", PACKAGES.join(", "));
    }
    apt.install(&PACKAGES.map(str::to_owned))?;
    toolchain::distribution_compiler().context("after the installation")
}

fn install_linker(llvm_major: u32) -> Result<()> {
    let (first, last) = (LINKER_LLVM_MAJORS.start(), LINKER_LLVM_MAJORS.end());
    if !LINKER_LLVM_MAJORS.contains(&llvm_major) {
        bail!(
            "the distribution's Rust uses LLVM {llvm_major}, and bpf-linker {LINKER_VERSION} knows LLVM {first} to {last}; install instead:\n    {NIGHTLY_COMMANDS}"
        );
    }
    let prefix = format!("/usr/lib/llvm-{llvm_major}");
    let mut packages = Vec::new();
    if !Path::new(&prefix).join("bin/llvm-config").is_file() || !Path::new(&prefix).join("lib/libPolly.a").is_file() {
        packages.extend([format!("llvm-{llvm_major}-dev"), format!("libpolly-{llvm_major}-dev")]);
    }
    if !Path::new("/usr/include/zstd.h").is_file() {
        packages.push("libzstd-dev".to_owned());
    }
    // LLVM is C++: the linker needs its standard library.
    if run::find_program("c++").is_none() {
        packages.push("g++".to_owned());
    }
    if !packages.is_empty() {
        println!("missing: development files of LLVM {llvm_major} (bpf-linker is built against them)");
        apt_or_advice(|| packages.join(" "))?.install(&packages)?;
    }
    compile_linker(llvm_major, &prefix)
}

/// With an own target directory, removed afterwards: the intermediate files are large.
fn compile_linker(llvm_major: u32, prefix: &str) -> Result<()> {
    let root = cache::linker_root(LINKER_VERSION, llvm_major);
    let build = cache::dir().join(format!("build-{}", std::process::id()));
    println!("compiling bpf-linker {LINKER_VERSION} for LLVM {llvm_major} into {} (about a minute)", root.display());
    // cargo advises to extend PATH with the directory of what it installed, which nobody needs here.
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(env::split_paths(&path).chain([root.join("bin")]))?;
    let outcome = run::run(
        workspace::cargo()
            .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--force"])
            .args(["--no-default-features", "--features", &format!("llvm-{llvm_major}")])
            .arg("--root")
            .arg(&root)
            .env("LLVM_PREFIX", prefix)
            .env("PATH", path)
            .env("CARGO_TARGET_DIR", &build)
            .env_remove("RUSTFLAGS"),
    );
    // Nothing is lost if this fails: the directory is only a cache.
    let _ = std::fs::remove_dir_all(&build);
    outcome.context("compiling bpf-linker")
}

fn apt_or_advice(what: impl FnOnce() -> String) -> Result<Apt> {
    Apt::available().map_err(|reason| anyhow::anyhow!("{reason}; please install: {}", what()))
}
