//! `weir cleanup`: the node as it was before Weir.

use std::path::Path;

use anyhow::{Context as _, bail};

use super::{flows, tables};
use crate::loader::{self, WriterLock};

#[derive(Clone, Debug, clap::Args)]
pub(super) struct CleanupArgs {
    /// Also while an agent is running, and also if live flows are cut.
    #[arg(long)]
    force: bool,
}

pub(super) fn run(pin_root: &Path, args: &CleanupArgs) -> anyhow::Result<()> {
    if !pin_root.exists() {
        println!("nothing to remove: {} does not exist", pin_root.display());
        return Ok(());
    }
    let lock = WriterLock::try_acquire(pin_root).with_context(|| format!("lock {}", pin_root.display()))?;
    if lock.is_none() && !args.force {
        bail!("an agent is running on {}; end it first, or give --force", pin_root.display());
    }
    // Maps of another layout cannot be read; their flows are not counted.
    let alive = tables::pins(pin_root).and_then(|pins| flows::alive(&pins)).unwrap_or(0);
    if alive > 0 && !args.force {
        bail!("{alive} live flows would be cut; give --force to remove everything all the same");
    }
    let removed = loader::cleanup(pin_root).context("clean up")?;
    println!("removed {} attachments and {} maps; {alive} live flows were cut", removed.attachments, removed.maps);
    Ok(())
}
