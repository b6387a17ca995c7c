//! `weir cleanup`: the node as it was before Weir, at once or after the last translated flow; or without kube-proxy's rules.

mod drain;
mod kube_proxy;
mod left;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use nix::unistd::{chdir, chroot};
use proxy_common::abi::Config;
use serde::Serialize;

use super::{
    output::{Format, print_json},
    tables,
};
use crate::{
    loader::{self, WriterLock},
    takeover::{self, Kept},
};
use drain::DrainArgs;
use kube_proxy::KubeProxyArgs;
use left::Left;

pub(super) use drain::FlowsCut;

#[derive(Clone, Debug, clap::Args)]
pub(super) struct CleanupArgs {
    /// Also while an agent is running; with --kube-proxy: also while kube-proxy is running, or if Weir serves nothing
    #[arg(long, conflicts_with = "drain")]
    force: bool,
    #[command(flatten)]
    drain: DrainArgs,
    #[command(flatten)]
    kube_proxy: KubeProxyArgs,
    /// The node's root directory, for a container that has it mounted: pins, processes and programs (nft, iptables) are found
    /// there
    #[arg(long, value_name = "DIR")]
    host_root: Option<PathBuf>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub(super) fn run(pin_root: &Path, args: &CleanupArgs) -> anyhow::Result<()> {
    if let Some(root) = &args.host_root {
        chroot(root).and_then(|()| chdir("/")).with_context(|| format!("change the root to {}", root.display()))?;
    }
    if args.kube_proxy.kube_proxy {
        return kube_proxy::run(pin_root, &args.kube_proxy, args.force, args.output);
    }
    if !pin_root.exists() {
        return nothing_there(pin_root, args.output);
    }
    let lock = WriterLock::try_acquire(pin_root).with_context(|| format!("lock {}", pin_root.display()))?;
    if lock.is_none() && args.drain.drain {
        bail!(
            "an agent is running on {} and would write the frontends back; end it first (on a cluster: take this node \
             from Weir's DaemonSet)",
            pin_root.display()
        );
    }
    if lock.is_none() && !args.force {
        bail!("an agent is running on {}; end it first, or give --force", pin_root.display());
    }
    if args.drain.drain {
        return drain::run(pin_root, &args.drain, args.output);
    }
    // Maps of another layout cannot be read; their flows are not counted.
    let cut = tables::pins(pin_root).and_then(|pins| Left::read(&pins, Config::DEFAULT.udp_timeout_s)).ok();
    remove(pin_root, cut, args.output).map(drop)
}

fn nothing_there(pin_root: &Path, output: Format) -> anyhow::Result<()> {
    if output == Format::Json {
        return print_json(&Removal::default());
    }
    println!("nothing to remove: {} does not exist", pin_root.display());
    Ok(())
}

/// What was removed. `cut` is missing if the maps could not be read.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Removal {
    attachments: usize,
    maps: usize,
    kept: Vec<Kept>,
    cut: Option<Left>,
}

/// Removes everything, and says what that cut. Returns the number of flows cut.
fn remove(pin_root: &Path, cut: Option<Left>, output: Format) -> anyhow::Result<usize> {
    let flows = cut.as_ref().map_or(0, Left::total);
    let removed = loader::cleanup(pin_root).context("clean up")?;
    let kept = takeover::remove_handover().context("remove the table of the handover from kube-proxy")?;
    let removal = Removal { attachments: removed.attachments, maps: removed.maps, kept, cut };
    match output {
        Format::Json => println!("{}", serde_json::to_string(&removal)?),
        Format::Table => {
            println!("removed {} attachments and {} maps", removal.attachments, removal.maps);
            for kept in &removal.kept {
                println!("stays: {} ({}): {}", kept.item, kept.item.by, kept.why);
            }
            match &removal.cut {
                Some(left) => println!("cut: {left}"),
                None => println!("cut: unknown, the maps are of another version"),
            }
        }
    }
    Ok(flows)
}
