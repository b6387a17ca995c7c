//! As much of kustomize as `deploy/` uses: lists of resources and JSON patches (RFC 6902). Anything else in a
//! kustomization is an error, so that nothing is passed over. `tests/deploy.rs` compares with kustomize itself, where
//! there is one.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use json_patch::Patch;
use serde::Deserialize;
use serde_json::Value;

const FILE: &str = "kustomization.yaml";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kustomization {
    api_version: String,
    kind: String,
    resources: Vec<String>,
    #[serde(default)]
    patches: Vec<PatchFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PatchFile {
    path: String,
    target: Target,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    #[serde(default)]
    group: String,
    version: String,
    kind: String,
    name: String,
}

/// The objects that `kubectl apply -k DIRECTORY` would send.
pub fn render(directory: &Path) -> Result<Vec<Value>> {
    let file: Kustomization = read(&directory.join(FILE))?;
    let known = file.api_version == "kustomize.config.k8s.io/v1beta1" && file.kind == "Kustomization";
    ensure!(known, "{}: {} {}", directory.display(), file.api_version, file.kind);
    let mut objects = Vec::new();
    for resource in &file.resources {
        let path = directory.join(resource);
        if path.is_dir() {
            objects.append(&mut render(&path)?);
        } else {
            objects.push(read(&path)?);
        }
    }
    for patch in &file.patches {
        let path = directory.join(&patch.path);
        apply(&read(&path)?, &patch.target, &mut objects).with_context(|| path.display().to_string())?;
    }
    Ok(objects)
}

/// A patch whose target is not there would be a silent mistake; kustomize takes it.
fn apply(patch: &Patch, target: &Target, objects: &mut [Value]) -> Result<()> {
    let object = objects.iter_mut().find(|object| target.is(object)).with_context(|| format!("no {target:?}"))?;
    json_patch::patch(object, patch).map_err(Into::into)
}

impl Target {
    fn is(&self, object: &Value) -> bool {
        let api_version =
            if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) };
        object["apiVersion"] == api_version && object["kind"] == self.kind && object["metadata"]["name"] == self.name
    }
}

/// A file with one YAML document.
fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_saphyr::from_str(&text).with_context(|| path.display().to_string())
}
