//! Where things lie in the workspace, and the cargo that builds its host crates. Used by every command.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::run;

/// The checkout this xtask belongs to.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("invariant: xtask is a directory of the workspace")
}

/// The kernel object. Always below the workspace, also when `CARGO_TARGET_DIR` points elsewhere:
/// the agent's build script looks for it here.
pub(crate) fn kernel_object() -> PathBuf {
    root().join("target/ebpf/weir.o")
}

/// The kernel object of the layout that tests upgrade to. Not beside the other: the agent's build watches that directory.
pub(crate) fn next_object() -> PathBuf {
    root().join("target/ebpf-next/weir.o")
}

/// The programs that only `cargo xtask bench packet` loads. The rig looks for them here.
pub(crate) fn bench_object() -> PathBuf {
    root().join("target/ebpf/bench.o")
}

/// The cargo that runs this xtask, without what `cargo run` added to the environment. Build scripts
/// that watch those variables (ring's does) would otherwise run again at every switch between
/// `cargo build` and `cargo xtask`.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    for (name, _) in env::vars_os() {
        if is_set_by_cargo_run(&name) {
            command.env_remove(name);
        }
    }
    command
}

/// The directory in which cargo puts the binaries of a profile (`debug` or `release`).
pub(crate) fn binary(profile_dir: &str, name: &str) -> Result<PathBuf> {
    let metadata = run::capture(cargo().args(["metadata", "--no-deps", "--format-version", "1", "--locked"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata).context("output of cargo metadata")?;
    let target = metadata["target_directory"].as_str().context("cargo metadata names no target_directory")?;
    Ok(Path::new(target).join(profile_dir).join(name))
}

fn is_set_by_cargo_run(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| {
        name.starts_with("CARGO_PKG_")
            || name.starts_with("CARGO_MANIFEST_")
            || matches!(name, "CARGO_BIN_NAME" | "CARGO_CRATE_NAME" | "CARGO_PRIMARY_PACKAGE" | "OUT_DIR")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_holds_the_workspace_manifest() {
        assert!(root().join("Cargo.toml").is_file());
    }

    #[test]
    fn only_the_variables_of_cargo_run_are_removed() {
        assert!(is_set_by_cargo_run(OsStr::new("CARGO_PKG_NAME")));
        assert!(is_set_by_cargo_run(OsStr::new("CARGO_MANIFEST_DIR")));
        assert!(!is_set_by_cargo_run(OsStr::new("CARGO_TARGET_DIR")));
        assert!(!is_set_by_cargo_run(OsStr::new("CARGO_HOME")));
    }
}
