//! One run's identity, its entry in the registry below /run/weir-rig, and its removal.
//!
//! Everything a run makes carries its id in its name, so removal needs the id and nothing else.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock},
    thread,
};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use super::{cgroup, mounts, netns};

pub(super) const REGISTRY: &str = "/run/weir-rig";
const OWNER_FILE: &str = "owner.json";
/// Name of the folder that holds all runs, below the cgroup2 mount and below bpffs.
const FOLDER: &str = "weir-rig";

/// Runs of this process that a signal has to remove.
static LIVE: Mutex<Vec<Arc<Run>>> = Mutex::new(Vec::new());

#[derive(Debug)]
pub(super) struct Run {
    id: String,
    dir: PathBuf,
    cgroup: PathBuf,
    pins: PathBuf,
}

/// Who made a run. A pid alone would be taken over by a later process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Owner {
    pub(super) pid: u32,
    /// Field 22 of /proc/<pid>/stat, in clock ticks since boot.
    pub(super) start_time: u64,
    pub(super) tag: String,
}

impl Run {
    /// Registers a new run before anything of it exists.
    pub(super) fn create(tag: &str) -> Result<Arc<Self>> {
        let cgroups = mounts::cgroup2()?.join(FOLDER);
        let pins = mounts::bpffs()?.join(FOLDER);
        let pid = std::process::id();
        let start_time = start_time(pid).context("reading this process' own start time")?;
        let owner = Owner { pid, start_time, tag: tag.to_owned() };
        let (id, dir) = register(&owner)?;
        let run = Arc::new(Self { cgroup: cgroups.join(&id), pins: pins.join(&id), id, dir });
        end_on_signals()?;
        lock_live().push(Arc::clone(&run));
        let made = cgroup::create(&run.cgroup).and_then(|()| cgroup::create(&run.pins));
        if let Err(error) = made {
            // The first error tells more than what removal could add.
            let _ = run.remove();
            return Err(error);
        }
        Ok(run)
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    pub(super) fn pins(&self) -> &Path {
        &self.pins
    }

    pub(super) fn netns_name(&self, host: &str) -> String {
        format!("{}{host}", netns_prefix(&self.id))
    }

    /// Removes everything of this run. A second call finds nothing to do.
    pub(super) fn remove(&self) -> Result<()> {
        lock_live().retain(|run| run.id != self.id);
        remove(&self.id)
    }
}

/// Removes everything that carries the id. Goes on after a failure and reports all of them;
/// the registry entry stays in that case, so that the next start tries again.
pub(super) fn remove(id: &str) -> Result<()> {
    let cgroups = mounts::cgroup2()?.join(FOLDER);
    let mut failures = Vec::new();
    let mut note = |result: Result<()>| {
        if let Err(error) = result {
            failures.push(format!("{error:#}"));
        }
    };
    note(cgroup::kill_and_remove(&cgroups.join(id)));
    if let Some(bpffs) = mounts::existing_bpffs()? {
        note(remove_dir(&bpffs.join(FOLDER).join(id)));
        // The last run takes the folder along; it is not empty while another run lives.
        let _ = fs::remove_dir(bpffs.join(FOLDER));
    }
    for name in netns::list(&netns_prefix(id))? {
        note(netns::delete(&name));
    }
    let _ = fs::remove_dir(&cgroups);
    if failures.is_empty() {
        return remove_dir(&Path::new(REGISTRY).join(id));
    }
    Err(anyhow!("run {id} is not removed completely: {}", failures.join("; ")))
}

/// Namespaces, and folders among cgroups, pins and the registry.
pub(super) fn leftovers(id: &str) -> Result<Vec<String>> {
    let mut folders = vec![mounts::cgroup2()?.join(FOLDER), PathBuf::from(REGISTRY)];
    folders.extend(mounts::existing_bpffs()?.map(|bpffs| bpffs.join(FOLDER)));
    let left = folders.into_iter().map(|folder| folder.join(id)).filter(|path| path.exists());
    let mut left: Vec<String> = left.map(|path| path.display().to_string()).collect();
    left.extend(netns::list(&netns_prefix(id))?);
    Ok(left)
}

/// Reads the registry: run ids with their owners (none where the entry is unreadable).
pub(super) fn registered() -> Result<Vec<(String, Option<Owner>)>> {
    let entries = match fs::read_dir(REGISTRY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context(REGISTRY),
    };
    let mut runs = Vec::new();
    for entry in entries {
        let entry = entry.context(REGISTRY)?;
        let id = entry.file_name().to_string_lossy().into_owned();
        // Dot names are entries in the making and the reaper's lock.
        if !id.starts_with('.') {
            let owner =
                fs::read(entry.path().join(OWNER_FILE)).ok().and_then(|text| serde_json::from_slice(&text).ok());
            runs.push((id, owner));
        }
    }
    Ok(runs)
}

/// When the process started; `None` if it is gone, or dead and not yet waited for.
pub(super) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name stands in brackets and may hold anything, so fields are counted from the last one.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The entry appears by rename, complete with its owner: a reaper never sees a half-made one.
fn register(owner: &Owner) -> Result<(String, PathBuf)> {
    fs::create_dir_all(REGISTRY).context(REGISTRY)?;
    let id = format!("{:06x}", rand::random::<u32>() & 0x00ff_ffff);
    let draft = Path::new(REGISTRY).join(format!(".new-{id}"));
    let dir = Path::new(REGISTRY).join(&id);
    fs::create_dir(&draft).with_context(|| draft.display().to_string())?;
    fs::write(draft.join(OWNER_FILE), serde_json::to_vec(owner)?).context("writing the owner")?;
    fs::rename(&draft, &dir).with_context(|| format!("registering run {id}"))?;
    Ok((id, dir))
}

fn netns_prefix(id: &str) -> String {
    format!("weir-{id}-")
}

fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn lock_live() -> std::sync::MutexGuard<'static, Vec<Arc<Run>>> {
    LIVE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// From the first world on, SIGINT and SIGTERM remove every live run and end the process.
fn end_on_signals() -> Result<()> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    let started = STARTED.get_or_init(|| start_signal_thread().map_err(|error| format!("{error:#}")));
    started.clone().map_err(|error| anyhow!("catching signals: {error}"))
}

fn start_signal_thread() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    thread::Builder::new().name("rig-signals".into()).spawn(move || {
        let number = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => libc::SIGINT,
                _ = terminate.recv() => libc::SIGTERM,
            }
        });
        let runs = lock_live().clone();
        for run in runs {
            if let Err(error) = run.remove() {
                eprintln!("{error:#}");
            }
        }
        std::process::exit(128 + number);
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_its_own_start_time() {
        let own = start_time(std::process::id()).unwrap();
        let parent = start_time(std::os::unix::process::parent_id()).unwrap();
        assert!(parent <= own);
        assert_eq!(start_time(u32::MAX), None);
    }
}
