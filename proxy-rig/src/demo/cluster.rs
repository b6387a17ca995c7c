//! The objects of a running world, written as the manifest directory that its agents read.
//!
//! Plays the control plane: Nodes and Pods come from the world, EndpointSlices from matching
//! Services' selectors with the pods' labels. Used by the demo, the end-to-end suite and the bench.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::slices;
use crate::world::{Node, Pod};

/// A pod as the objects tell of it.
#[derive(Debug, Clone)]
pub struct Workload {
    pub name: String,
    pub namespace: String,
    pub node: String,
    pub labels: BTreeMap<String, String>,
    /// IPv4, IPv6.
    pub addresses: [String; 2],
    /// Container ports by name, for Services that name their target port.
    pub named_ports: BTreeMap<String, u16>,
    pub ready: bool,
    pub terminating: bool,
}

/// What a pod is besides its place in the world.
#[derive(Debug, Clone, Copy, Default)]
pub struct PodSpec<'a> {
    /// Empty stands for `default`.
    pub namespace: &'a str,
    pub labels: &'a [(&'a str, &'a str)],
    pub named_ports: &'a [(&'a str, u16)],
}

/// All objects, and the directory that shows them to the agents after [`Cluster::publish`].
#[derive(Debug, Default)]
pub struct Cluster {
    dir: PathBuf,
    services: BTreeMap<String, Value>,
    nodes: BTreeMap<String, Value>,
    workloads: BTreeMap<String, Workload>,
    /// What each file held when it was written last: an unchanged file is not touched.
    written: BTreeMap<String, String>,
}

impl Cluster {
    pub fn new(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(Self {
            dir,
            services: BTreeMap::new(),
            nodes: BTreeMap::new(),
            workloads: BTreeMap::new(),
            written: BTreeMap::new(),
        })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Takes over the files of a directory as they are; returns their names.
    pub fn copy_from(&mut self, from: &Path) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
            let path = entry.with_context(|| from.display().to_string())?.path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                self.put_file(&name, &text)?;
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Writes a file of YAML documents. Its Services get slices at the next [`Cluster::publish`].
    pub fn put_file(&mut self, name: &str, text: &str) -> Result<()> {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(text).map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
        for document in documents {
            if document["kind"] == "Service" {
                self.services.insert(identity(&document), document);
            }
        }
        self.write(name, text.to_owned())
    }

    /// A Service given as an object instead of a file; replaces the one of the same name.
    pub fn put_service(&mut self, service: Value) -> Result<()> {
        let identity = identity(&service);
        self.write(&format!("service-{}.yaml", identity.replace('/', "-")), serde_json::to_string_pretty(&service)?)?;
        self.services.insert(identity, service);
        Ok(())
    }

    /// Removes a Service that was put by [`Cluster::put_service`], with its slices.
    pub fn remove_service(&mut self, namespace: &str, name: &str) -> Result<()> {
        self.services.remove(&format!("{namespace}/{name}"));
        let file = format!("service-{namespace}-{name}.yaml");
        self.written.remove(&file);
        fs::remove_file(self.dir.join(&file)).with_context(|| format!("removing {file}"))?;
        self.publish()
    }

    pub fn services(&self) -> impl Iterator<Item = &Value> {
        self.services.values()
    }

    pub fn add_node(&mut self, node: &Node) {
        let addresses: Vec<Value> =
            node.addresses().iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
        let object = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": node.name(), "labels": {"kubernetes.io/hostname": node.name()}},
            "spec": {"podCIDRs": [
                format!("10.244.{}.0/24", node.index()),
                format!("fd00:10:244:{}::/64", node.index()),
            ]},
            "status": {"addresses": addresses},
        });
        self.nodes.insert(node.name().to_owned(), object);
    }

    pub fn add_pod(&mut self, pod: &Pod, spec: &PodSpec<'_>) {
        let namespace = if spec.namespace.is_empty() { "default" } else { spec.namespace };
        let workload = Workload {
            name: pod.name().to_owned(),
            namespace: namespace.to_owned(),
            node: pod.node_name().unwrap_or_default().to_owned(),
            labels: spec.labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            addresses: pod.addresses().map(|ip| ip.to_string()),
            named_ports: spec.named_ports.iter().map(|(name, port)| ((*name).to_owned(), *port)).collect(),
            ready: true,
            terminating: false,
        };
        self.workloads.insert(workload.name.clone(), workload);
    }

    pub fn remove_pod(&mut self, name: &str) {
        self.workloads.remove(name);
    }

    pub fn change_pod(&mut self, name: &str, change: impl FnOnce(&mut Workload)) -> Result<()> {
        change(self.workloads.get_mut(name).with_context(|| format!("no pod {name}"))?);
        Ok(())
    }

    pub fn workload(&self, name: &str) -> Option<&Workload> {
        self.workloads.get(name)
    }

    /// The ready pods behind a Service, by name.
    pub fn endpoints_of(&self, namespace: &str, service: &str) -> BTreeSet<&str> {
        let Some(service) = self.services.get(&format!("{namespace}/{service}")) else { return BTreeSet::new() };
        self.workloads
            .values()
            .filter(|pod| pod.ready && slices::selects(service, pod))
            .map(|pod| pod.name.as_str())
            .collect()
    }

    /// Writes Nodes, Pods and EndpointSlices as they are now.
    pub fn publish(&mut self) -> Result<()> {
        self.write_list("nodes.yaml", self.nodes.values().cloned().collect())?;
        self.write_list("pods.yaml", self.workloads.values().map(slices::pod_object).collect())?;
        self.write_list("endpointslices.yaml", self.slices())
    }

    /// Nodes, Services and EndpointSlices, for an API server.
    pub fn objects(&self) -> Vec<Value> {
        self.nodes.values().chain(self.services.values()).cloned().chain(self.slices()).collect()
    }

    fn slices(&self) -> Vec<Value> {
        let pods = || self.workloads.values();
        self.services.values().flat_map(|service| slices::slices_of(service, pods())).collect()
    }

    /// Changes the Node object.
    pub fn change_node(&mut self, name: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
        change(self.nodes.get_mut(name).with_context(|| format!("no node {name}"))?);
        Ok(())
    }

    fn write_list(&mut self, name: &str, items: Vec<Value>) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        let text = serde_saphyr::to_string(&list).context("writing YAML")?;
        self.write(name, text)
    }

    /// Appears by rename: an agent never reads half a file.
    fn write(&mut self, name: &str, text: String) -> Result<()> {
        if self.written.get(name) == Some(&text) {
            return Ok(());
        }
        let draft = self.dir.join(format!(".{name}.new"));
        fs::write(&draft, &text).with_context(|| draft.display().to_string())?;
        fs::rename(&draft, self.dir.join(name)).with_context(|| name.to_owned())?;
        self.written.insert(name.to_owned(), text);
        Ok(())
    }
}

/// Namespace and name as `namespace/name`.
pub(super) fn identity(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str();
    format!("{}/{}", text("namespace").unwrap_or("default"), text("name").unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
                           spec: {clusterIP: 10.0.0.1, selector: {app: web}, ports: [{port: 80}]}\n";

    #[test]
    fn an_unchanged_file_is_not_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::new(dir.path().join("manifests")).unwrap();
        cluster.put_file("web.yaml", SERVICE).unwrap();
        cluster.publish().unwrap();
        let file = cluster.dir().join("endpointslices.yaml");
        let first = fs::metadata(&file).unwrap();
        cluster.publish().unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!(fs::metadata(&file).unwrap().ino(), first.ino());
        assert_eq!(fs::read_dir(cluster.dir()).unwrap().count(), 4);
    }
}
