//! `cargo xtask build-ebpf`: compiles the kernel programs and puts one object with BTF at
//! `target/ebpf/weir.o`, where the agent's build script picks it up. test, demo and bench call it too.

use std::{
    fs,
    io::IsTerminal,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    elf, run,
    toolchain::{self, Choice, Toolchain},
    workspace,
};

const TARGET: &str = "bpfel-unknown-none";
/// The profile of the workspace's Cargo.toml, and the directory cargo names after it.
const PROFILE: &str = "ebpf";
const BINARY: &str = "weir-ebpf";
/// What only `cargo xtask bench packet` loads.
const BENCH_BINARY: &str = "weir-ebpf-bench";
/// Another layout of the tables, for tests of the upgrade.
const NEXT: &str = "abi-next";

/// The command: builds, and fails on warnings if asked to.
pub(crate) fn run(choice: Option<Choice>, deny_warnings: bool) -> Result<ExitCode> {
    let choice = choice.map_or_else(Choice::of_environment, Ok)?;
    let warnings = build(choice)?;
    if deny_warnings && warnings > 0 {
        bail!("{warnings} warnings in the kernel programs");
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the object and returns the number of compiler warnings in the workspace's own crates.
pub(crate) fn build(choice: Choice) -> Result<usize> {
    let toolchain = toolchain::find(choice).context("run `cargo xtask setup` to install what is missing")?;
    println!("build-ebpf: {toolchain}");
    let target_dir = target_dir();
    let warnings = compile(&toolchain, &target_dir, &["--bin", BINARY, "--bin", BENCH_BINARY])?;

    let built = target_dir.join(TARGET).join(PROFILE);
    publish(&built.join(BINARY), &workspace::kernel_object())?;
    publish(&built.join(BENCH_BINARY), &workspace::bench_object())?;
    Ok(warnings)
}

/// Builds the object of the layout that tests upgrade to. What both have in common is compiled once.
pub(crate) fn build_next(choice: Choice) -> Result<()> {
    let toolchain = toolchain::find(choice).context("run `cargo xtask setup` to install what is missing")?;
    let target_dir = target_dir();
    compile(&toolchain, &target_dir, &["--bin", BINARY, "--features", NEXT])?;
    publish(&target_dir.join(TARGET).join(PROFILE).join(BINARY), &workspace::next_object())
}

fn target_dir() -> PathBuf {
    workspace::root().join("target/ebpf-build")
}

/// Puts a checked object where it is looked for.
fn publish(built: &Path, destination: &Path) -> Result<()> {
    let object = fs::read(built).with_context(|| format!("reading {}", built.display()))?;
    let programs = check(&object).with_context(|| format!("{}", built.display()))?;
    let changed = replace_if_different(destination, &object)?;
    println!(
        "build-ebpf: {} ({} bytes, BTF, {programs} program sections, {})",
        destination.display(),
        object.len(),
        if changed { "new" } else { "unchanged" },
    );
    Ok(())
}

/// Runs cargo with JSON messages: it repeats the warnings of crates that are up to date, so that a
/// second run counts them again.
fn compile(toolchain: &Toolchain, target_dir: &Path, what: &[&str]) -> Result<usize> {
    let format = if std::io::stderr().is_terminal() { "json-diagnostic-rendered-ansi" } else { "json" };
    let mut command = toolchain::rust_command(&toolchain.compiler.cargo);
    command
        .current_dir(workspace::root())
        .args(["build", "--package", "proxy-ebpf", "--locked", "--profile", PROFILE])
        .args(what)
        .args(["-Zbuild-std=core", "--target", TARGET, "--message-format", format])
        .env("RUSTC", &toolchain.compiler.rustc)
        // The library is built from source, which stable compilers allow only this way.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags(&toolchain.linker))
        .env("CARGO_TARGET_DIR", target_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    run_counting_warnings(&mut command)
}

/// The fields are separated by 0x1f, so that a path may hold spaces.
fn rust_flags(linker: &Path) -> String {
    [
        &format!("-Clinker={}", linker.display()),
        // BTF is made from debug information.
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        // v3: 32-bit ALU and jumps, atomics; Linux 5.12 and later.
        "-Ctarget-cpu=v3",
    ]
    .join("\x1f")
}

fn run_counting_warnings(command: &mut Command) -> Result<usize> {
    let line = run::line(command);
    let child = command.spawn().with_context(|| format!("could not start `{line}`"))?;
    let output = child.wait_with_output().with_context(|| format!("waiting for `{line}`"))?;
    let mut warnings = 0;
    for message in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Value>(message) else { continue };
        if let Some(rendered) = message["message"]["rendered"].as_str() {
            eprint!("{rendered}");
        }
        warnings += usize::from(is_own_warning(&message));
    }
    ensure!(output.status.success(), "`{line}` ended with {}", output.status);
    Ok(warnings)
}

/// A diagnostic that points into a crate of the workspace. What the linker says has no code, and
/// neither has the closing "N warnings emitted".
fn is_own_warning(message: &Value) -> bool {
    let own = message["package_id"].as_str().is_some_and(|id| id.starts_with("path+"));
    let code = message["message"]["code"]["code"].as_str();
    own && message["message"]["level"] == "warning" && code.is_some_and(|code| code != "linker_messages")
}

/// Refuses an object without type information, and counts the sections that hold programs.
fn check(object: &[u8]) -> Result<usize> {
    let sections = elf::section_names(object)?;
    for needed in [".BTF", ".BTF.ext"] {
        ensure!(sections.iter().any(|name| name == needed), "the object has no section {needed}");
    }
    let programs = sections.iter().filter(|name| is_program_section(name)).count();
    ensure!(programs > 0, "the object has no program");
    Ok(programs)
}

fn is_program_section(name: &str) -> bool {
    let kind = name.split('/').next().unwrap_or(name);
    matches!(kind, "classifier" | "tc" | "tcx" | "xdp" | "xdp.frags" | "sk_lookup") || kind.starts_with("cgroup")
}

/// Leaves an equal file alone: its time decides whether cargo builds the agent again.
fn replace_if_different(path: &Path, content: &[u8]) -> Result<bool> {
    if fs::read(path).is_ok_and(|present| present == content) {
        return Ok(false);
    }
    let directory = path.parent().context("the object has a directory")?;
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let new = path.with_extension("o.new");
    fs::write(&new, content).with_context(|| format!("writing {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("replacing {}", path.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(package: &str, level: &str, code: Value) -> Value {
        json!({
            "reason": "compiler-message",
            "package_id": package,
            "message": { "level": level, "code": code },
        })
    }

    #[test]
    fn only_warnings_of_own_crates_count() {
        let own = "path+file:///src/weir/proxy-ebpf#0.1.0";
        assert!(is_own_warning(&message(own, "warning", json!({ "code": "dead_code" }))));
        assert!(!is_own_warning(&message(own, "warning", Value::Null)));
        assert!(!is_own_warning(&message(own, "warning", json!({ "code": "linker_messages" }))));
        assert!(!is_own_warning(&message(own, "error", json!({ "code": "E0425" }))));
        let other = "registry+https://github.com/rust-lang/crates.io-index#aya-ebpf@0.2.1";
        assert!(!is_own_warning(&message(other, "warning", json!({ "code": "dead_code" }))));
        assert!(!is_own_warning(&json!({ "reason": "build-finished", "success": true })));
    }

    #[test]
    fn program_sections_are_told_from_data() {
        for name in ["classifier", "cgroup/connect4", "cgroup_skb/egress", "xdp.frags"] {
            assert!(is_program_section(name), "{name}");
        }
        for name in [".maps", ".text", ".BTF", "license", ".rodata"] {
            assert!(!is_program_section(name), "{name}");
        }
    }
}
