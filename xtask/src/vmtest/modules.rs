//! Which kernel modules go into the guest, in an order in which they can be inserted. The packages hold no list of
//! dependencies (it is made at installation), so they are read from the modules themselves.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// What the checks, the scenarios and the tests with namespaces use.
const WANTED: [&str; 6] = ["veth", "sch_ingress", "cls_bpf", "bridge", "sctp", "8021q"];

pub(super) struct Module {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

/// `directory` holds `kernel/`.
pub(super) fn in_order(directory: &Path) -> Result<Vec<Module>> {
    let mut files = HashMap::new();
    find(&directory.join("kernel"), &mut files)?;
    let mut ordered = Vec::new();
    for name in WANTED {
        // A module that is not there is built into the kernel.
        if files.contains_key(name) {
            add(name, &files, &mut ordered)?;
        }
    }
    Ok(ordered)
}

/// Dependencies first.
fn add(name: &str, files: &HashMap<String, PathBuf>, ordered: &mut Vec<Module>) -> Result<()> {
    if ordered.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let path = files.get(name).with_context(|| format!("no module {name}"))?;
    let content = read(path)?;
    for dependency in dependencies(&content) {
        add(&dependency, files, ordered).with_context(|| format!("needed by {name}"))?;
    }
    ordered.push(Module { name: name.to_owned(), content });
    Ok(())
}

/// All module files below a directory, by module name.
fn find(directory: &Path, files: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in directory.read_dir().with_context(|| format!("reading {}", directory.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            find(&path, files)?;
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            files.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "xz") {
        let output = Command::new("xz").args(["-dc"]).arg(path).output().context("starting xz (package xz-utils)")?;
        ensure!(output.status.success(), "xz -dc {}: {}", path.display(), output.status);
        return Ok(output.stdout);
    }
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// The section .modinfo holds `depends=first,second` between zero bytes.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let names = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(names);
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_the_module() {
        assert_eq!(dependencies(b"x\0depends=udp_tunnel,ip6-udp-tunnel\0intree=Y\0"), ["udp_tunnel", "ip6_udp_tunnel"]);
        assert!(dependencies(b"license=GPL\0depends=\0").is_empty());
        assert!(dependencies(b"").is_empty());
    }
}
