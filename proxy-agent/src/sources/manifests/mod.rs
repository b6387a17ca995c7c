//! Manifests as a source: a directory of YAML files, or one file, in place of an API server.
//!
//! Read are Service, EndpointSlice, Endpoints, Node, Pod and ServiceCIDR, one by one or in lists. What an API server
//! and its controllers would add is added here:
//!
//! - defaults (`defaults`): namespace, type, protocol, policies, affinity timeout;
//! - addresses and ports (`allocate`): a Service without clusterIP gets one of the Service CIDRs, a
//!   NodePort or LoadBalancer Service gets nodePorts from 30000-32767, both by a hash of the name, so that
//!   the same files give the same numbers again;
//! - EndpointSlices, where a Service has none: from Endpoints of the same name, or else from the Pods that
//!   its selector matches (`pods`).
//!
//! [`Manifests`] does this without any I/O, for the scenario runner also; [`watch`] feeds it from disk.

mod allocate;
mod build;
mod defaults;
mod directory;
mod document;
mod pods;

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use ipnet::IpNet;

pub use directory::{ManifestConfig, WatchError, load, watch};
pub use document::{ManifestError, Place};

use self::{allocate::Allocations, build::World, document::Object};
use crate::{
    ingest::Interner,
    model::{Event, Skip, SourceKind},
};

/// The state of a set of manifest files, and what changed in it.
pub struct Manifests {
    files: BTreeMap<String, File>,
    allocations: Allocations,
    names: Interner,
    world: World,
    host_ports: bool,
    synced: bool,
}

/// The last good reading of one file.
#[derive(Default)]
struct File {
    /// Of the text read last, good or not.
    fingerprint: Option<u64>,
    objects: Vec<Object>,
}

/// What one look at the files brought.
#[derive(Debug, Default)]
pub struct Update {
    /// Only the differences to the state before; the first update ends in `Synced` for every kind.
    pub events: Vec<Event>,
    /// Of files whose text is new. What was last good of such an object, or of the whole file, stays in use.
    pub errors: Vec<ManifestError>,
    /// Parts of objects that are left out, where this is new.
    pub skips: Vec<Skip>,
    /// Other findings, where they are new.
    pub warnings: Vec<String>,
    /// Objects of kinds that Weir does not read, where the file's text is new.
    pub ignored: Vec<Place>,
}

impl Manifests {
    /// `service_cidrs`: where ClusterIPs are allocated; the first one's family is the default family.
    pub fn new(service_cidrs: Vec<IpNet>) -> Self {
        Self {
            files: BTreeMap::new(),
            allocations: Allocations::new(service_cidrs),
            names: Interner::default(),
            world: World::default(),
            host_ports: true,
            synced: false,
        }
    }

    /// Whether the host ports of Pods count.
    #[must_use]
    pub fn host_ports(self, host_ports: bool) -> Self {
        Self { host_ports, ..self }
    }

    /// Takes over the present files: name and text, or why it could not be read. A file that is not named
    /// is gone, and so are its objects.
    pub fn update(&mut self, files: BTreeMap<String, Result<String, String>>) -> Update {
        let mut update = Update::default();
        let known = self.files.len();
        self.files.retain(|name, _| files.contains_key(name));
        let mut changed = !self.synced || self.files.len() != known;
        for (name, text) in files {
            changed |= self.files.entry(name.clone()).or_default().read(&name, text, &mut update);
        }
        if !changed {
            return update;
        }
        let objects = self.files.values().flat_map(|file| &file.objects);
        let world = build::build(objects, &mut self.allocations, &mut self.names, self.host_ports);
        update.events = build::changes(&self.world, &world);
        update.skips = news(&self.world.skips, &world.skips);
        update.warnings = news(&self.world.warnings, &world.warnings);
        self.world = world;
        if !std::mem::replace(&mut self.synced, true) {
            let kinds = [
                SourceKind::Services,
                SourceKind::Slices,
                SourceKind::Node,
                SourceKind::Pods,
                SourceKind::ServiceCidrs,
            ];
            update.events.extend(kinds.map(Event::Synced));
        }
        update
    }
}

impl File {
    /// True if the objects may differ from those before.
    fn read(&mut self, name: &str, text: Result<String, String>, update: &mut Update) -> bool {
        let fingerprint = fingerprint(&text);
        if self.fingerprint == Some(fingerprint) {
            return false;
        }
        self.fingerprint = Some(fingerprint);
        let parsed = match text {
            Ok(text) => document::parse(name, &text),
            Err(message) => {
                let place = Place { file: name.to_owned(), document: None, object: None };
                update.errors.push(ManifestError { place, message, whole_file: true });
                return false;
            }
        };
        let whole_file = parsed.errors.iter().any(|error| error.whole_file);
        if !whole_file {
            let is_broken = |title: &str| parsed.errors.iter().any(|it| it.place.object.as_deref() == Some(title));
            let is_good = |title: &str| parsed.objects.iter().any(|it| it.title() == title);
            let is_kept = |object: &&Object| is_broken(&object.title()) && !is_good(&object.title());
            let mut objects: Vec<Object> = self.objects.iter().filter(is_kept).cloned().collect();
            objects.extend(parsed.objects);
            self.objects = objects;
        }
        update.errors.extend(parsed.errors);
        if whole_file {
            return false;
        }
        update.ignored.extend(parsed.ignored);
        true
    }
}

fn fingerprint(text: &Result<String, String>) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

fn news<T: Clone + PartialEq>(old: &[T], new: &[T]) -> Vec<T> {
    new.iter().filter(|item| !old.contains(item)).cloned().collect()
}

#[cfg(test)]
#[path = "manifests_tests.rs"]
mod tests;
