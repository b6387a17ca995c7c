//! Cgroups of a run. They place processes below or outside a node, and they are the record of
//! what the run started: whatever the run started sits in its subtree, and so do its children.

use std::{
    fs, io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

const EMPTY_DEADLINE: Duration = Duration::from_secs(5);

/// Tried again a few times: another run that ends just now may take the common parent away
/// between the two steps of making parent and child.
pub(super) fn create(path: &Path) -> Result<()> {
    const TRIES: u32 = 5;
    for _ in 1..TRIES {
        match fs::create_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other.with_context(|| format!("making {}", path.display())),
        }
    }
    fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))
}

/// Kills every process below `root` and removes the tree.
pub(super) fn kill_and_remove(root: &Path) -> Result<()> {
    if !root.exists() {
        return Ok(());
    }
    kill(root)?;
    remove_tree(root)
}

fn kill(root: &Path) -> Result<()> {
    let switch = root.join("cgroup.kill");
    fs::write(&switch, "1").with_context(|| switch.display().to_string())?;
    let started = Instant::now();
    while populated(root)? {
        if started.elapsed() > EMPTY_DEADLINE {
            bail!("processes in {} do not end", root.display());
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn populated(root: &Path) -> Result<bool> {
    let path = root.join("cgroup.events");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(text.lines().any(|line| line == "populated 1"))
}

/// A cgroup directory goes by rmdir, children first; its files are not unlinked.
fn remove_tree(root: &Path) -> Result<()> {
    for entry in fs::read_dir(root).with_context(|| root.display().to_string())? {
        let entry = entry.with_context(|| root.display().to_string())?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(root) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing cgroup {}", root.display()))
        }
        _ => Ok(()),
    }
}
