//! Removes what runs left behind whose owner is dead. Called by every new world and by `weir-rig reap`.

use std::{
    fs::{self, OpenOptions},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{Flock, FlockArg};

use super::run::{self, Owner, REGISTRY};

/// A draft entry is renamed within milliseconds; an old one has lost its maker.
const DRAFT_AGE: Duration = Duration::from_secs(60);

/// Removes dead runs and returns their ids. Runs with a living owner are never touched.
/// A run that cannot be removed does not keep the others; all failures make the error.
pub fn reap_dead_runs() -> Result<Vec<String>> {
    fs::create_dir_all(REGISTRY).context(REGISTRY)?;
    let _only_reaper = lock()?;
    remove_old_drafts()?;
    let (mut reaped, mut failures) = (Vec::new(), Vec::new());
    for (id, owner) in run::registered()? {
        if owner.as_ref().is_some_and(is_alive) {
            continue;
        }
        match run::remove(&id) {
            Ok(()) => reaped.push(id),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    ensure!(failures.is_empty(), failures.join("; "));
    Ok(reaped)
}

/// Everything that still carries the run's id. Empty after its removal.
pub fn leftovers(run_id: &str) -> Result<Vec<String>> {
    run::leftovers(run_id)
}

fn is_alive(owner: &Owner) -> bool {
    run::start_time(owner.pid) == Some(owner.start_time)
}

fn lock() -> Result<Flock<fs::File>> {
    let path = Path::new(REGISTRY).join(".reap-lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| anyhow::anyhow!("locking {}: {errno}", path.display()))
}

fn remove_old_drafts() -> Result<()> {
    for entry in fs::read_dir(REGISTRY).context(REGISTRY)? {
        let entry = entry.context(REGISTRY)?;
        let is_draft = entry.file_name().to_string_lossy().starts_with(".new-");
        let age = entry.metadata().and_then(|meta| meta.modified()).ok().and_then(|time| time.elapsed().ok());
        if is_draft && age.is_some_and(|age| age > DRAFT_AGE) {
            fs::remove_dir_all(entry.path()).with_context(|| entry.path().display().to_string())?;
        }
    }
    Ok(())
}
