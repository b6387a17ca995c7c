//! Finds the programs of the workspace that the rig starts as processes.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// The agent under test: `WEIR_BIN`, or `weir` beside this program.
pub fn weir_binary() -> Result<PathBuf> {
    find("weir", "WEIR_BIN", "cargo build -p proxy-agent")
}

/// The agent with tables of another layout: `WEIR_NEXT_BIN`, or `weir-next` beside this program.
pub fn weir_next_binary() -> Result<PathBuf> {
    find("weir-next", "WEIR_NEXT_BIN", "cargo xtask test")
}

/// This rig's own program: `WEIR_RIG_BIN`, or `weir-rig` beside this program.
pub fn rig_binary() -> Result<PathBuf> {
    find("weir-rig", "WEIR_RIG_BIN", "cargo build -p proxy-rig")
}

/// Test programs lie in `target/<profile>/deps`, one below the binaries.
fn find(name: &str, variable: &str, build: &str) -> Result<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("{variable}={} is not a file", path.display());
        }
        return Ok(path);
    }
    let current = env::current_exe().context("finding this program's own path")?;
    current
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder: &Path| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("no {name} near {}: `{build}`, or set {variable}", current.display()))
}
