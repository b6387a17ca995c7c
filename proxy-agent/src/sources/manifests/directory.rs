//! The manifests on disk: reading them, and watching for changes.
//!
//! Called by the agent's main: [`watch`] runs for as long as the agent does.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::{
    sync::{Notify, mpsc},
    time,
};

use super::{ManifestError, Manifests, Update};
use crate::{
    model::{Event, ObjectRef, Skip, SkipReason},
    sources::{ReceiverGone, Warnings},
};

const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];
/// How often a look is taken without any sign of a change: for file systems that give none, for a
/// directory that was removed and made again, and as the net below a full inotify queue.
const RECHECK: Duration = Duration::from_secs(10);
/// An editor's save is several file operations: they are waited for, but never longer than this.
const MAX_SETTLE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct ManifestConfig {
    /// A directory (its *.yaml, *.yml and *.json, without subdirectories and hidden files) or one file.
    pub path: PathBuf,
    /// Where ClusterIPs of Services without one are allocated.
    pub service_cidrs: Vec<IpNet>,
    /// Whether Pods are read for their host ports.
    pub host_ports: bool,
    /// How long nothing must happen before a change counts as complete.
    pub settle: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error("reading the manifests at {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("watching the manifests at {path}: {source}")]
    Watch { path: PathBuf, source: notify::Error },
    #[error(transparent)]
    ReceiverGone(#[from] ReceiverGone),
}

impl ManifestConfig {
    pub fn new(path: impl Into<PathBuf>, service_cidrs: Vec<IpNet>) -> Self {
        Self { path: path.into(), service_cidrs, host_ports: true, settle: Duration::from_millis(50) }
    }
}

/// One look at the files, without watching: for commands that only want to know what is there.
pub fn load(config: &ManifestConfig) -> Result<Update, WatchError> {
    Ok(Manifests::new(config.service_cidrs.clone()).update(read(&config.path)?))
}

/// Sends the objects of the manifests, and then every change. Fails at once if the path cannot be read at
/// the start; later on, what is in use stays in use.
pub async fn watch(config: ManifestConfig, events: mpsc::Sender<Event>) -> Result<(), WatchError> {
    let changed = std::sync::Arc::new(Notify::new());
    let signal = changed.clone();
    // The watch stands before the first reading, so that no change falls between them.
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading the files is itself an access, and would otherwise be its own next occasion.
        if event.map_or(true, |event| !event.kind.is_access()) {
            signal.notify_one();
        }
    })
    .map_err(|source| WatchError::Watch { path: config.path.clone(), source })?;
    let directory = watched_directory(&config.path);
    start(&mut watcher, &directory).map_err(|source| WatchError::Watch { path: config.path.clone(), source })?;

    let mut warnings = Warnings::default();
    let mut manifests = Manifests::new(config.service_cidrs).host_ports(config.host_ports);
    send(manifests.update(read(&config.path)?), &events, &mut warnings).await?;
    let mut readable = true;
    loop {
        tokio::select! {
            () = events.closed() => return Err(ReceiverGone.into()),
            () = settled(&changed, config.settle) => {}
            () = time::sleep(RECHECK) => {}
        }
        match read(&config.path) {
            Ok(files) => {
                if !readable {
                    // The directory may be another one of the same name.
                    restart(&mut watcher, &directory, &mut warnings);
                }
                readable = true;
                send(manifests.update(files), &events, &mut warnings).await?;
            }
            Err(error) => {
                if readable {
                    warnings.warn(format_args!("{error}; the last good state stays in use"));
                }
                readable = false;
                changed.notify_one();
                time::sleep(RECHECK / 10).await;
            }
        }
    }
}

/// A file is watched by its directory: a rename over it would end a watch on the file itself.
fn watched_directory(path: &Path) -> PathBuf {
    if path.is_dir() {
        return path.to_owned();
    }
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn start(watcher: &mut RecommendedWatcher, directory: &Path) -> notify::Result<()> {
    watcher.watch(directory, RecursiveMode::NonRecursive)
}

fn restart(watcher: &mut RecommendedWatcher, directory: &Path, warnings: &mut Warnings) {
    // The old watch died with the old directory; that it cannot be removed is expected.
    let _ = watcher.unwatch(directory);
    if let Err(error) = start(watcher, directory) {
        warnings.warn(format_args!("watching {}: {error}; changes are seen with delay", directory.display()));
    }
}

/// Returns when something has changed and then nothing more for the time `settle`.
async fn settled(changed: &Notify, settle: Duration) {
    changed.notified().await;
    let last = time::Instant::now() + MAX_SETTLE;
    while time::Instant::now() < last && time::timeout(settle, changed.notified()).await.is_ok() {}
}

async fn send(update: Update, events: &mpsc::Sender<Event>, warnings: &mut Warnings) -> Result<(), ReceiverGone> {
    for place in &update.ignored {
        tracing::info!("{place}: ignored, Weir reads Service, EndpointSlice, Endpoints, Node, Pod and ServiceCIDR");
    }
    for error in &update.errors {
        let whole = if error.whole_file { "file" } else { "object" };
        warnings.warn(format_args!("{error}; the last good state of this {whole} stays in use, if there is one"));
    }
    for skip in &update.skips {
        warnings.warn(format_args!("{skip}; this part is left out"));
    }
    for warning in &update.warnings {
        warnings.warn(warning);
    }
    let mut skips = update.skips;
    skips.extend(update.errors.iter().map(malformed));
    let skipped = (!skips.is_empty()).then_some(Event::Skipped(skips));
    for event in skipped.into_iter().chain(update.events) {
        events.send(event).await.map_err(|_| ReceiverGone)?;
    }
    Ok(())
}

fn malformed(error: &ManifestError) -> Skip {
    let object = ObjectRef { kind: "manifest", namespace: "".into(), name: error.place.to_string().into() };
    Skip { object, field: String::new(), got: error.message.clone(), reason: SkipReason::Malformed }
}

/// Name and text of every manifest file. One that cannot be read is an error of this file only.
fn read(path: &Path) -> Result<BTreeMap<String, Result<String, String>>, WatchError> {
    let failed = |source| WatchError::Read { path: path.to_owned(), source };
    let paths: Vec<PathBuf> = if path.is_dir() {
        let entries = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(failed)?;
        entries.into_iter().map(|entry| entry.path()).filter(|path| is_manifest(path)).collect()
    } else {
        fs::metadata(path).map_err(failed)?;
        vec![path.to_owned()]
    };
    let mut files = BTreeMap::new();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match fs::read_to_string(&path) {
            Ok(text) => {
                files.insert(name, Ok(text));
            }
            // Removed between the listing and now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                files.insert(name, Err(format!("cannot be read: {error}")));
            }
        }
    }
    Ok(files)
}

fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    let extension = path.extension().and_then(|it| it.to_str());
    !hidden && extension.is_some_and(|it| EXTENSIONS.contains(&it)) && path.is_file()
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
