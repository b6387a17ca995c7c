//! Unpacks an image archive as a container engine would: by index, manifest and digests. The image suite runs what comes out.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// An unpacked image.
#[derive(Debug)]
pub struct Image {
    pub root: PathBuf,
    pub entrypoint: Vec<String>,
    pub name: String,
}

/// The files of an OCI image layout.
struct Layout(BTreeMap<String, Vec<u8>>);

/// Everything is checked that an engine checks, and that the Docker manifest means the same image.
pub fn unpack(archive: &Path, root: &Path) -> Result<Image> {
    let layout = Layout::read(archive).with_context(|| archive.display().to_string())?;
    ensure!(layout.json("oci-layout")?["imageLayoutVersion"] == "1.0.0", "no OCI image layout");
    let index = layout.json("index.json")?;
    let entry = &index["manifests"][0];
    let manifest: Value = serde_json::from_slice(layout.blob(entry)?).context("manifest")?;
    let config_blob = layout.blob(&manifest["config"])?;
    let config: Value = serde_json::from_slice(config_blob).context("config")?;

    let layers = manifest["layers"].as_array().context("no layers")?;
    let diff_ids = config["rootfs"]["diff_ids"].as_array().context("no diff_ids")?;
    ensure!(layers.len() == diff_ids.len(), "{} layers, {} diff_ids", layers.len(), diff_ids.len());
    fs::create_dir_all(root).with_context(|| root.display().to_string())?;
    for (layer, diff_id) in layers.iter().zip(diff_ids) {
        let content = layout.blob(layer)?;
        ensure!(*diff_id == digest(content), "the layer is not {diff_id}");
        tar::Archive::new(content).unpack(root).context("unpacking a layer")?;
    }

    let name = entry["annotations"]["io.containerd.image.name"].as_str().context("the image has no name")?;
    let docker = &layout.json("manifest.json")?[0];
    ensure!(docker["RepoTags"][0] == name, "{docker}");
    ensure!(layout.file(docker["Config"].as_str().unwrap_or_default())? == config_blob, "{docker}");
    let same = |(theirs, ours): (&Value, &Value)| theirs.as_str().is_some_and(|path| path.ends_with(hex_of(ours)));
    let docker_layers = docker["Layers"].as_array().context("manifest.json has no layers")?;
    ensure!(docker_layers.len() == layers.len() && docker_layers.iter().zip(layers).all(same), "{docker}");

    let entrypoint = serde_json::from_value(config["config"]["Entrypoint"].clone()).context("entrypoint")?;
    Ok(Image { root: root.to_owned(), entrypoint, name: name.to_owned() })
}

impl Layout {
    fn read(archive: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(File::open(archive)?).entries()? {
            let mut entry = entry?;
            let path = entry.path()?.to_str().context("a name that is not UTF-8")?.to_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            files.insert(path, content);
        }
        Ok(Self(files))
    }

    fn file(&self, path: &str) -> Result<&[u8]> {
        self.0.get(path).map(Vec::as_slice).with_context(|| format!("no {path} in the archive"))
    }

    fn json(&self, path: &str) -> Result<Value> {
        serde_json::from_slice(self.file(path)?).with_context(|| path.to_owned())
    }

    /// What a descriptor names, if size and digest are right.
    fn blob(&self, descriptor: &Value) -> Result<&[u8]> {
        let content = self.file(&format!("blobs/sha256/{}", hex_of(descriptor)))?;
        ensure!(descriptor["size"] == content.len(), "{descriptor}: {} bytes", content.len());
        ensure!(descriptor["digest"] == digest(content), "{descriptor}: the content has another digest");
        Ok(content)
    }
}

fn hex_of(descriptor: &Value) -> &str {
    descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:")).unwrap_or_default()
}

fn digest(content: &[u8]) -> String {
    let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
