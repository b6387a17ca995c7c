//! A double of the Kubernetes API server: real HTTP, the real list and watch protocol, objects in memory.
//!
//! Tests and the demo start one with [`ApiServer::start`], change objects through [`ApiServer::apply`]
//! and [`ApiServer::delete`], and disturb clients through [`ApiServer::faults`]. Objects are kept as
//! written apart from their metadata: defaulting and validation of specs are not done.

mod discovery;
mod faults;
mod request;
mod resources;
mod respond;
mod selector;
mod status;
mod store;
mod tls;
mod watch;
mod write;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::sync::oneshot;

pub use faults::{Faults, GoneAs, ListBreak};
pub use request::Verb;
pub use tls::Tls;

use resources::{Resource, by_kind, by_type};
use store::{Key, Store};

/// How the double behaves.
#[derive(Debug, Clone)]
pub struct Config {
    /// Events kept for watches; an older resourceVersion is answered by 410.
    pub history: usize,
    /// How often a quiet watch gets a bookmark, if it asked for bookmarks.
    pub bookmark_interval: Duration,
    /// Whether `sendInitialEvents` works, or is refused as by servers without WatchList.
    pub watch_list: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { history: 1000, bookmark_interval: Duration::from_secs(60), watch_list: true }
    }
}

/// A running double. Objects survive [`ApiServer::stop`]; [`ApiServer::serve`] brings it back.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
}

/// What requests work on.
struct Shared {
    config: Config,
    store: Mutex<Store>,
    /// Carries the newest resourceVersion; watches wait on it.
    changed: tokio::sync::watch::Sender<u64>,
    faults: Faults,
    counts: Mutex<BTreeMap<(&'static str, Verb), u64>>,
    requests: Mutex<Vec<(Instant, String)>>,
}

impl ApiServer {
    /// Serves on `listener` (made on the loopback or inside a namespace) from the current tokio runtime.
    pub fn start(listener: TcpListener, config: Config) -> Result<Self> {
        let shared = Arc::new(Shared {
            store: Mutex::new(Store::new(config.history)),
            config,
            changed: tokio::sync::watch::Sender::new(0),
            faults: Faults::default(),
            counts: Mutex::default(),
            requests: Mutex::default(),
        });
        let address = listener.local_addr().context("the listener's address")?;
        let mut server = Self { shared, address, stop: None };
        server.serve(listener)?;
        Ok(server)
    }

    /// The same on any free port of 127.0.0.1.
    pub fn start_local(config: Config) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("binding 127.0.0.1")?;
        Self::start(listener, config)
    }

    /// Serves (again) on a listener, with the objects of before.
    pub fn serve(&mut self, listener: TcpListener) -> Result<()> {
        self.stop();
        self.address = listener.local_addr().context("the listener's address")?;
        listener.set_nonblocking(true).context("the listener")?;
        let listener = tokio::net::TcpListener::from_std(listener).context("the listener")?;
        let router = respond::router(Arc::clone(&self.shared));
        let (stop, stopped) = oneshot::channel();
        let serving = axum::serve(listener, router).with_graceful_shutdown(async {
            // A dropped sender stops it too.
            let _ = stopped.await;
        });
        tokio::spawn(async move { serving.await });
        self.stop = Some(stop);
        Ok(())
    }

    /// Stops listening and ends all watches: the server is down.
    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The serving task is gone only if its runtime is.
            let _ = stop.send(());
            self.shared.faults.close_watches();
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Writes a kubeconfig that leads here.
    pub fn write_kubeconfig(&self, path: &Path) -> io::Result<()> {
        let mut text = String::from("apiVersion: v1\nkind: Config\ncurrent-context: rig\n");
        let url = self.url();
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "clusters:\n- name: rig\n  cluster:\n    server: {url}\n\
             users:\n- name: rig\n  user: {{}}\n\
             contexts:\n- name: rig\n  context:\n    cluster: rig\n    user: rig\n"
        );
        fs::write(path, text)
    }

    /// Creates or replaces every object of a YAML text: several documents, `kind: List` too.
    /// An object that stays as it was makes no event.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        // As kubectl reads it: a name may be "n" or "y".
        let options = serde_saphyr::options! { strict_booleans: true };
        let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(yaml, options).context("YAML")?;
        for document in documents.into_iter().filter(|document| !document.is_null()) {
            self.apply_object(document)?;
        }
        Ok(())
    }

    /// The same for one object, or a List of them.
    pub fn apply_object(&self, mut object: Value) -> Result<()> {
        if object["kind"] == "List" {
            let Value::Array(items) = object["items"].take() else {
                bail!("a List without items");
            };
            return items.into_iter().try_for_each(|item| self.apply_object(item));
        }
        let (api_version, kind) = (text(&object, "apiVersion")?, text(&object, "kind")?);
        let resource = by_type(api_version, kind).with_context(|| format!("{api_version} {kind} is not served"))?;
        let key = Key::of(resource, &object, None).context("metadata.name is missing")?;
        self.shared.store().put(resource, &key, object);
        self.shared.announce();
        Ok(())
    }

    /// Deletes an object; an error if there was none. Cluster-scoped kinds ignore the namespace.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        let (resource, key) = locate(kind, namespace, name)?;
        let removed = self.shared.store().remove(resource, &key);
        ensure!(removed.is_some(), "no {kind} {namespace}/{name}");
        self.shared.announce();
        Ok(())
    }

    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>> {
        let (resource, key) = locate(kind, namespace, name)?;
        Ok(self.shared.store().get(resource, &key).map(|object| (*object).clone()))
    }

    /// All objects of a kind: such as the Events that a client posted.
    pub fn list(&self, kind: &str) -> Result<Vec<Value>> {
        let resource = by_kind(kind).with_context(|| format!("kind {kind} is not served"))?;
        Ok(self.shared.store().current(resource).values().map(|object| (**object).clone()).collect())
    }

    pub fn resource_version(&self) -> u64 {
        self.shared.store().version()
    }

    /// Forgets the history, as etcd's compaction does: older resourceVersions are gone.
    pub fn compact(&self) {
        self.shared.store().compact();
    }

    /// Everything is as it was at an earlier version, as after a restore from a backup. Open watches go on.
    pub fn restore(&self, version: u64) -> Result<()> {
        let restored = self.shared.store().restore(version);
        restored.map_err(|gone| anyhow::anyhow!("version {version} is gone, the oldest is {}", gone.oldest))?;
        self.shared.announce();
        Ok(())
    }

    /// Things to go wrong.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// How many requests of a kind came for a resource, such as `("services", Verb::List)`.
    pub fn count(&self, plural: &str, verb: Verb) -> u64 {
        let counts = self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().find(|((name, of), _)| *name == plural && *of == verb).map_or(0, |(_, count)| *count)
    }

    /// Watches that are open now, over all resources.
    pub fn open_watches(&self) -> usize {
        self.shared.faults.open_watches()
    }

    /// Every request so far: method, path and query.
    pub fn requests(&self) -> Vec<String> {
        self.requests_at().into_iter().map(|(_, line)| line).collect()
    }

    /// The same with the time at which each came.
    pub fn requests_at(&self) -> Vec<(Instant, String)> {
        self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the watches after a change.
    fn announce(&self) {
        let version = self.store().version();
        self.changed.send_replace(version);
    }

    fn note_request(&self, line: String) {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), line));
    }

    fn count(&self, resource: &Resource, verb: Verb) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((resource.plural, verb)).or_default() += 1;
    }
}

fn locate(kind: &str, namespace: &str, name: &str) -> Result<(&'static Resource, Key)> {
    let resource = by_kind(kind).with_context(|| format!("kind {kind} is not served"))?;
    let namespace = if resource.namespaced { namespace } else { "" };
    Ok((resource, Key::new(namespace, name)))
}

fn text<'a>(object: &'a Value, field: &str) -> Result<&'a str> {
    object[field].as_str().with_context(|| format!("{field} is missing"))
}
