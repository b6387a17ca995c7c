//! The manifests in `deploy/` and the image, as the tests use them: [`kustomize`] puts a variant together, [`image`] unpacks
//! the archive of `cargo xtask image`, [`pod`] says what container the variant asks for, and [`container`] becomes it.

mod capabilities;
pub mod container;
pub mod image;
pub mod kustomize;
pub mod pod;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// `deploy/`: below the working directory, else in the source tree that this was built from.
pub fn directory() -> PathBuf {
    let here = Path::new("deploy");
    if here.is_dir() { here.to_owned() } else { Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy") }
}

/// Every directory that `kubectl apply -k` is meant for: `deploy/` itself and the overlays, in the order of their names.
pub fn variants() -> Result<Vec<PathBuf>> {
    let overlays = directory().join("overlays");
    let mut variants = vec![directory()];
    for entry in fs::read_dir(&overlays).with_context(|| overlays.display().to_string())? {
        variants.push(entry?.path());
    }
    variants.sort();
    Ok(variants)
}
