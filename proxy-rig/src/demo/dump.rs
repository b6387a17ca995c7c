//! What an operator would look at: `weir services`, and one map as bpftool prints it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::world::Node;

const MAP: &str = "SERVICES_V4";
/// Lines of the dump that are shown.
const LINES: usize = 44;

/// `weir services` on the node, as text.
pub(super) fn services(node: &Node) -> Result<String> {
    let output = node.weir("services", &[])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "weir services: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

/// The command that was run and the first lines of what it printed.
pub(super) fn map(node: &Node) -> Result<String> {
    let pinned = find(node.pin_dir())?.with_context(|| format!("no map {MAP} below {}", node.pin_dir().display()))?;
    let path = pinned.display().to_string();
    let (shown, text) = match Command::new("bpftool").args(["map", "dump", "pinned", &path]).output() {
        Ok(output) if output.status.success() => {
            (format!("bpftool map dump pinned {path}"), String::from_utf8_lossy(&output.stdout).into_owned())
        }
        // Not installed, or too old for this kernel.
        _ => {
            let output = node.weir("maps", &["dump", MAP])?;
            ensure!(output.status.success(), "weir maps dump: {}", String::from_utf8_lossy(&output.stderr));
            (format!("weir maps dump {MAP}"), String::from_utf8_lossy(&output.stdout).into_owned())
        }
    };
    let total = text.lines().count();
    let mut lines: Vec<&str> = text.lines().take(LINES).collect();
    let rest = format!("... {} more lines", total.saturating_sub(LINES));
    if total > LINES {
        lines.push(&rest);
    }
    Ok(format!("$ {shown}\n{}", lines.join("\n")))
}

fn find(dir: &Path) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry.with_context(|| dir.display().to_string())?;
        if entry.file_name() == MAP {
            return Ok(Some(entry.path()));
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Some(found) = find(&entry.path())?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
