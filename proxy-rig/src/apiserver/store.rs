//! Objects, the one resourceVersion counter, and the events that watches read.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use serde_json::{Map, Value, json};

use super::resources::{RESOURCES, Resource};

/// Objects are ordered by it, as lists are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// Empty for cluster-scoped objects.
    pub(super) namespace: String,
    pub(super) name: String,
}

pub(super) type Objects = BTreeMap<Key, Arc<Value>>;

/// One change of one object.
#[derive(Debug, Clone)]
pub(super) struct Event {
    version: u64,
    plural: &'static str,
    pub(super) key: Key,
    pub(super) before: Option<Arc<Value>>,
    pub(super) after: Option<Arc<Value>>,
}

/// The wanted resourceVersion lies before the kept history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gone {
    pub(super) oldest: u64,
}

/// Kept by plural, so that both API groups of Events see the same objects, as in a real server.
#[derive(Debug)]
pub(super) struct Store {
    version: u64,
    objects: BTreeMap<&'static str, Objects>,
    history: VecDeque<Event>,
    window: usize,
    /// Changes up to this version are no longer in the history.
    compacted: u64,
}

impl Key {
    pub(super) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// From an object's metadata; the request's namespace comes first, then "default".
    pub(super) fn of(resource: &Resource, object: &Value, namespace: Option<&str>) -> Option<Self> {
        let metadata = &object["metadata"];
        let own = metadata["namespace"].as_str();
        let namespace = match resource.namespaced {
            true => namespace.or(own).unwrap_or("default"),
            false => "",
        };
        Some(Self::new(namespace, metadata["name"].as_str()?))
    }
}

impl Store {
    pub(super) fn new(window: usize) -> Self {
        // Versions start above 1: 0 has a meaning of its own in requests.
        Self { version: 1, objects: BTreeMap::new(), history: VecDeque::new(), window, compacted: 1 }
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn get(&self, resource: &Resource, key: &Key) -> Option<Arc<Value>> {
        self.objects.get(resource.plural)?.get(key).cloned()
    }

    pub(super) fn current(&self, resource: &Resource) -> Objects {
        self.objects.get(resource.plural).cloned().unwrap_or_default()
    }

    /// Creates or replaces. Nothing happens if the object stays as it was.
    pub(super) fn put(&mut self, resource: &'static Resource, key: &Key, mut object: Value) -> Arc<Value> {
        let before = self.get(resource, key);
        complete(resource, key, &mut object, before.as_deref());
        if let Some(before) = before.as_ref().filter(|before| ***before == object) {
            return Arc::clone(before);
        }
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let object = Arc::new(object);
        let objects = self.objects.entry(resource.plural).or_default();
        objects.insert(key.clone(), Arc::clone(&object));
        self.record(resource, key, before, Some(Arc::clone(&object)));
        object
    }

    /// Removes, and returns the object's last state under the version of its deletion.
    pub(super) fn remove(&mut self, resource: &'static Resource, key: &Key) -> Option<Arc<Value>> {
        let before = self.objects.get_mut(resource.plural)?.remove(key)?;
        self.version += 1;
        let mut last = (*before).clone();
        last["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let last = Arc::new(last);
        self.record(resource, key, Some(Arc::clone(&last)), None);
        Some(last)
    }

    /// The objects as they were at a version: the present ones with later changes undone.
    pub(super) fn at_version(&self, resource: &Resource, version: u64) -> Result<Objects, Gone> {
        let mut objects = self.current(resource);
        for event in self.events_after(resource, version)?.into_iter().rev() {
            match event.before {
                Some(before) => objects.insert(event.key, before),
                None => objects.remove(&event.key),
            };
        }
        Ok(objects)
    }

    pub(super) fn events_after(&self, resource: &Resource, version: u64) -> Result<Vec<Event>, Gone> {
        if version < self.compacted {
            return Err(Gone { oldest: self.compacted });
        }
        let events = self.history.iter();
        Ok(events.filter(|event| event.version > version && event.plural == resource.plural).cloned().collect())
    }

    pub(super) fn compact(&mut self) {
        self.history.clear();
        self.compacted = self.version;
    }

    /// Everything is as it was at a version, which counts on from there.
    pub(super) fn restore(&mut self, version: u64) -> Result<(), Gone> {
        let mut objects = BTreeMap::new();
        for row in &RESOURCES {
            objects.insert(row.plural, self.at_version(row, version)?);
        }
        self.objects = objects;
        self.history.retain(|event| event.version <= version);
        self.version = version;
        Ok(())
    }

    fn record(&mut self, resource: &Resource, key: &Key, before: Option<Arc<Value>>, after: Option<Arc<Value>>) {
        self.history.push_back(Event {
            version: self.version,
            plural: resource.plural,
            key: key.clone(),
            before,
            after,
        });
        while self.history.len() > self.window {
            if let Some(dropped) = self.history.pop_front() {
                self.compacted = dropped.version;
            }
        }
    }
}

/// Fills in what the server owns. The version is carried over here, so that an unchanged object compares equal.
fn complete(resource: &Resource, key: &Key, object: &mut Value, before: Option<&Value>) {
    object["apiVersion"] = json!(resource.api_version());
    object["kind"] = json!(resource.kind);
    if !object["metadata"].is_object() {
        object["metadata"] = Value::Object(Map::new());
    }
    let metadata = &mut object["metadata"];
    metadata["name"] = json!(key.name);
    if resource.namespaced {
        metadata["namespace"] = json!(key.namespace);
    }
    match before.map(|before| &before["metadata"]) {
        Some(before) => {
            for field in ["uid", "creationTimestamp", "resourceVersion"] {
                metadata[field] = before[field].clone();
            }
        }
        None => {
            metadata["uid"] = json!(new_uid());
            metadata["creationTimestamp"] = json!(now());
        }
    }
}

/// In the form of a random UUID.
fn new_uid() -> String {
    let bits = rand::random::<u128>();
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        (bits >> 96) as u32,
        (bits >> 80) as u16,
        (bits >> 68) as u16 & 0xfff,
        (bits >> 56) as u16 & 0xfff,
        bits as u64 & 0xffff_ffff_ffff,
    )
}

fn now() -> String {
    let now = k8s_openapi::jiff::Timestamp::now();
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::{super::resources::by_kind, *};

    fn services() -> &'static Resource {
        by_kind("Service").unwrap()
    }

    fn put(store: &mut Store, name: &str, port: u16) {
        store.put(services(), &Key::new("default", name), json!({"spec": {"port": port}}));
    }

    #[test]
    fn versions_grow_with_changes_only() {
        let mut store = Store::new(10);
        put(&mut store, "a", 1);
        put(&mut store, "a", 1);
        assert_eq!(store.version(), 2);
        put(&mut store, "a", 2);
        assert_eq!(store.version(), 3);
        assert_eq!(store.events_after(services(), 1).unwrap().len(), 2);
        assert_eq!(store.events_after(services(), 3).unwrap().len(), 0);
    }

    #[test]
    fn the_past_is_rebuilt_from_the_history() {
        let mut store = Store::new(10);
        put(&mut store, "a", 1);
        put(&mut store, "b", 1);
        let then = store.version();
        put(&mut store, "a", 2);
        store.remove(services(), &Key::new("default", "b"));
        put(&mut store, "c", 1);
        let past = store.at_version(services(), then).unwrap();
        let names: Vec<&str> = past.keys().map(|key| key.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(past.values().next().unwrap()["spec"]["port"], 1);
    }

    #[test]
    fn a_restore_forgets_what_came_later() {
        let mut store = Store::new(10);
        put(&mut store, "a", 1);
        let then = store.version();
        put(&mut store, "a", 2);
        put(&mut store, "b", 1);
        store.restore(then).unwrap();
        assert_eq!(store.version(), then);
        let objects = store.current(services());
        assert_eq!(objects.len(), 1);
        assert_eq!(objects.values().next().unwrap()["spec"]["port"], 1);
        put(&mut store, "c", 1);
        assert_eq!(store.events_after(services(), then).unwrap().len(), 1);
    }

    #[test]
    fn a_short_history_ends_in_gone() {
        let mut store = Store::new(2);
        for port in 0..5 {
            put(&mut store, "a", port);
        }
        assert_eq!(store.events_after(services(), 3).unwrap_err(), Gone { oldest: 4 });
        assert_eq!(store.events_after(services(), 4).unwrap().len(), 2);
        store.compact();
        assert!(store.events_after(services(), 5).is_err());
        assert!(store.events_after(services(), 6).is_ok());
    }
}
