//! The container that a variant of the manifests asks for, with the node's own directories. Used by the image suite.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{self as core, ConfigMap, EnvVar, HostPathVolumeSource, Volume},
};
use serde_json::Value;

use super::{
    container::{Bind, Container},
    image::Image,
    kustomize::render,
};

/// `work` is a directory for the files of ConfigMaps; `node` is what `spec.nodeName` will be. `others` are objects that the cluster
/// has beside those of the variant.
pub fn container(variant: &Path, image: &Image, node: &str, work: &Path, others: &[Value]) -> Result<Container> {
    let mut objects = render(variant)?;
    objects.extend_from_slice(others);
    let set: DaemonSet = object(&objects, "DaemonSet")?;
    let pod = set.spec.context("no spec")?.template.spec.context("no pod")?;
    let container = pod.containers.first().context("no container")?;
    let security = container.security_context.clone().unwrap_or_default();
    let mut command = image.entrypoint.clone();
    command.extend(container.args.iter().flatten().cloned());
    Ok(Container {
        root: image.root.clone(),
        command,
        env: env(container, &objects, node)?,
        binds: binds(&pod, container, &objects, work)?,
        system_mounts: true,
        read_only_root: security.read_only_root_filesystem == Some(true),
        privileged: security.privileged == Some(true),
        capabilities: security.capabilities.and_then(|capabilities| capabilities.add).unwrap_or_default(),
        no_new_privileges: security.allow_privilege_escalation == Some(false),
    })
}

fn object<T: serde::de::DeserializeOwned>(objects: &[Value], kind: &str) -> Result<T> {
    let found = objects.iter().find(|object| object["kind"] == kind).with_context(|| format!("no {kind}"))?;
    serde_json::from_value(found.clone()).with_context(|| kind.to_owned())
}

fn config_map(objects: &[Value], name: &str) -> Result<Option<ConfigMap>> {
    let is_it = |object: &&Value| object["kind"] == "ConfigMap" && object["metadata"]["name"] == name;
    objects.iter().find(is_it).map(|it| serde_json::from_value(it.clone()).context("ConfigMap")).transpose()
}

/// First what `envFrom` names, then the variables themselves, which come before it.
fn env(container: &core::Container, objects: &[Value], node: &str) -> Result<Vec<(String, String)>> {
    let mut env = Vec::new();
    for from in container.env_from.iter().flatten() {
        let wanted = from.config_map_ref.as_ref().context("envFrom without a ConfigMap")?;
        match config_map(objects, &wanted.name)? {
            Some(map) => env.extend(map.data.unwrap_or_default()),
            None if wanted.optional == Some(true) => {}
            None => bail!("no ConfigMap {}", wanted.name),
        }
    }
    for var in container.env.iter().flatten() {
        env.push(variable(var, node)?);
    }
    Ok(env)
}

fn variable(var: &EnvVar, node: &str) -> Result<(String, String)> {
    let field = || Some(var.value_from.as_ref()?.field_ref.as_ref()?.field_path.as_str());
    match (&var.value, field()) {
        (Some(value), _) => Ok((var.name.clone(), value.clone())),
        (None, Some("spec.nodeName")) => Ok((var.name.clone(), node.to_owned())),
        _ => bail!("the rig cannot fill in {}", var.name),
    }
}

fn binds(pod: &core::PodSpec, container: &core::Container, objects: &[Value], work: &Path) -> Result<Vec<Bind>> {
    let mut binds = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = pod.volumes.iter().flatten().find(|volume| volume.name == mount.name);
        let volume = volume.with_context(|| format!("no volume {}", mount.name))?;
        let source = source(volume, objects, work).with_context(|| format!("volume {}", volume.name))?;
        let read_only = mount.read_only == Some(true);
        binds.push(Bind { source, target: mount.mount_path.clone().into(), read_only });
    }
    Ok(binds)
}

fn source(volume: &Volume, objects: &[Value], work: &Path) -> Result<PathBuf> {
    if let Some(HostPathVolumeSource { path, type_ }) = &volume.host_path {
        if type_.as_deref() == Some("DirectoryOrCreate") {
            fs::create_dir_all(path).with_context(|| path.clone())?;
        }
        return Ok(path.into());
    }
    let wanted = volume.config_map.as_ref().context("neither a hostPath nor a configMap")?;
    let map = config_map(objects, &wanted.name)?.with_context(|| format!("no ConfigMap {}", wanted.name))?;
    let directory = work.join(&volume.name);
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    for (name, content) in map.data.iter().flatten() {
        fs::write(directory.join(name), content).with_context(|| name.clone())?;
    }
    Ok(directory)
}
