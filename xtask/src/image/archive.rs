//! The bytes of an image: one layer with one file, written as an OCI image layout in a tar (opencontainers/image-spec,
//! image-layout.md), with the manifest.json of `docker save` beside it for older engines. Nothing depends on the time, the
//! machine or the order of directories.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{BINARY, VERSION};

pub(super) const ENTRYPOINT: &str = "/weir";
pub(super) const LABELS: [(&str, &str); 4] = [
    ("org.opencontainers.image.title", "weir"),
    ("org.opencontainers.image.description", "Kubernetes Services by eBPF, in the place of kube-proxy"),
    ("org.opencontainers.image.version", VERSION),
    ("org.opencontainers.image.licenses", "MIT OR Apache-2.0"),
];

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub(super) struct Image {
    binary: Vec<u8>,
    /// Seconds since 1970, of every file and of the image.
    time: u64,
}

/// Content that is named by its SHA-256.
struct Blob {
    media_type: &'static str,
    content: Vec<u8>,
    hex: String,
}

impl Image {
    pub(super) fn new(binary: Vec<u8>, time: u64) -> Self {
        Self { binary, time }
    }

    /// The archive, and the digest by which the image is known.
    pub(super) fn archive(&self, repository: &str, tag: &str) -> Result<(Vec<u8>, String)> {
        let layer = Blob::new(LAYER, self.layer()?);
        let config = Blob::json(CONFIG, &self.config(&layer)?);
        let manifest = Blob::json(
            MANIFEST,
            &json!({
                "schemaVersion": 2, "mediaType": MANIFEST,
                "config": config.descriptor(), "layers": [layer.descriptor()],
            }),
        );
        let mut tar = Tar::new(self.time);
        for blob in [&layer, &config, &manifest] {
            tar.file(&blob.path(), 0o644, &blob.content)?;
        }
        let digest = manifest.digest();
        tar.json("index.json", &index(&manifest, repository, tag))?;
        // What engines read that know no OCI layout. Paths instead of digests, otherwise the same.
        let docker = json!([{
            "Config": config.path(), "RepoTags": [format!("{repository}:{tag}")], "Layers": [layer.path()],
        }]);
        tar.json("manifest.json", &docker)?;
        tar.json("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))?;
        Ok((tar.finish()?, digest))
    }

    /// Not compressed: the bytes of a compressor change with its version.
    fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = Tar::new(self.time);
        tar.file(BINARY, 0o755, &self.binary)?;
        tar.finish()
    }

    fn config(&self, layer: &Blob) -> Result<Value> {
        Ok(json!({
            "created": timestamp(self.time),
            "architecture": architecture()?,
            "os": "linux",
            "config": {"Entrypoint": [ENTRYPOINT], "Labels": Value::from_iter(LABELS)},
            "rootfs": {"type": "layers", "diff_ids": [layer.digest()]},
            "history": [{"created": timestamp(self.time), "created_by": "cargo xtask image"}],
        }))
    }
}

impl Blob {
    fn new(media_type: &'static str, content: Vec<u8>) -> Self {
        let hex = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        Self { media_type, content, hex }
    }

    fn json(media_type: &'static str, value: &Value) -> Self {
        Self::new(media_type, value.to_string().into_bytes())
    }

    fn digest(&self) -> String {
        format!("sha256:{}", self.hex)
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.hex)
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest(), "size": self.content.len()})
    }
}

/// containerd and Docker take the name from the first annotation, others the tag from the second.
fn index(manifest: &Blob, repository: &str, tag: &str) -> Value {
    let mut descriptor = manifest.descriptor();
    descriptor["annotations"] = json!({
        "io.containerd.image.name": format!("{repository}:{tag}"),
        "org.opencontainers.image.ref.name": tag,
    });
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]})
}

/// As Go names them, which is what OCI says.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => anyhow::bail!("no image for {other}: the kernel programs are built for x86_64 and aarch64"),
    }
}

/// RFC 3339, by the usual way from days to the civil calendar (eras of 400 years that begin in March).
fn timestamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// A tar of files that belong to root and are all of one time.
struct Tar {
    builder: tar::Builder<Vec<u8>>,
    time: u64,
}

impl Tar {
    fn new(time: u64) -> Self {
        Self { builder: tar::Builder::new(Vec::new()), time }
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_mtime(self.time);
        header.set_uid(0);
        header.set_gid(0);
        self.builder.append_data(&mut header, path, content).with_context(|| format!("packing {path}"))
    }

    fn json(&mut self, path: &str, value: &Value) -> Result<()> {
        self.file(path, 0o644, value.to_string().as_bytes())
    }

    fn finish(self) -> Result<Vec<u8>> {
        self.builder.into_inner().context("packing")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_image_is_the_same_bytes() {
        let archive = |content: &[u8], time| {
            Image::new(content.to_vec(), time).archive("localhost/weir", "1").expect("architecture")
        };
        assert_eq!(archive(b"binary", 7), archive(b"binary", 7));
        assert_ne!(archive(b"binary", 7).1, archive(b"Binary", 7).1);
        assert_ne!(archive(b"binary", 7).1, archive(b"binary", 8).1);
    }

    #[test]
    fn timestamps() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_210_096, "2024-02-29T12:34:56Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(seconds), text);
        }
    }
}
