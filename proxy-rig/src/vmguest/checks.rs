//! The loader against the guest's kernel: every program is accepted, tc programs come onto an interface by the way that this
//! kernel has, socket programs onto a cgroup, a second agent replaces them, and cleanup leaves nothing.

use std::{collections::BTreeMap, fs, os::fd::AsFd, path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};
use aya::util::KernelVersion;
use proxy_agent::{
    loader::{
        Attached, Attacher, CGROUP_HOOKS, CLSACT_MARK, Capacities, ConnectHooks, DEFAULT_PIN_ROOT, Loaded, Pins,
        Placement, TC_HOOKS, TcBackend, cleanup, config_for, load as load_object, sys,
    },
    node::{cgroup2_root, ensure_bpffs, netns_cookie},
    object,
};

use crate::verifier::{Verified, verify_again};

const NEAR: &str = "weir-near";
const FAR: &str = "weir-far";
/// The first kernel with tcx links.
const TCX_SINCE: KernelVersion = KernelVersion::new(6, 6, 0);

/// With the capacities of a real agent.
pub(super) fn load() -> Result<Vec<Verified>> {
    let loaded = load_with(&Capacities::default())?;
    let rows = verify_again(object::embedded()?, &loaded.ebpf)?;
    drop(loaded);
    cleanup(Path::new(DEFAULT_PIN_ROOT))?;
    Ok(rows)
}

/// tcx links where the kernel should have them, a clean refusal where it should not.
pub(super) fn tcx() -> Result<String> {
    let index = make_interface()?;
    let result = attacher(TcBackend::Tcx)?.attach_interface(index, NEAR);
    cleanup(Path::new(DEFAULT_PIN_ROOT))?;
    match (result, has_tcx()?) {
        (Ok(_), true) => Ok("accepted".to_owned()),
        (Err(error), false) => Ok(format!("refused as expected: {error}")),
        (Ok(_), false) => bail!("tcx on a kernel before {TCX_SINCE:?}"),
        (Err(error), true) => Err(error).context("this kernel should have tcx"),
    }
}

/// By the loader's own choice, twice: the second time the programs are replaced in place.
pub(super) fn attach() -> Result<String> {
    let index = make_interface()?;
    let wanted = BTreeMap::from([(index, NEAR.to_owned())]);
    for expected in [Attached::New, Attached::Replaced] {
        let mut attacher = attacher(TcBackend::Auto)?;
        attacher.remove_other_interfaces(&wanted)?;
        let how = attacher.attach_interface(index, NEAR)?;
        ensure!(how == expected, "attached as {how:?}, expected {expected:?}");
        carries_programs(index)?;
    }
    let removed = cleanup(Path::new(DEFAULT_PIN_ROOT))?;
    ensure!(removed.attachments == TC_HOOKS.len(), "cleanup removed {removed:?}");
    let rest = tc_filters()?;
    ensure!(rest == 0, "{rest} filters stay after cleanup");
    Ok(if has_tcx()? { "tcx" } else { "clsact" }.to_owned())
}

pub(super) fn cgroup() -> Result<String> {
    let cgroup = cgroup2_root()?.join("weir-guest");
    fs::create_dir(&cgroup).with_context(|| format!("creating {}", cgroup.display()))?;
    let pins = Pins::new(DEFAULT_PIN_ROOT);
    let mut links = Vec::new();
    for _ in 0..2 {
        attacher(TcBackend::Auto)?.attach_cgroup(&cgroup)?;
        for hook in &CGROUP_HOOKS {
            let link = sys::obj_get(&pins.link(hook.program)).with_context(|| format!("link of {}", hook.program))?;
            links.push(sys::link_facts(link.as_fd())?);
        }
    }
    let (first, second) = links.split_at(CGROUP_HOOKS.len());
    let replaced = |(a, b): (&sys::LinkFacts, &sys::LinkFacts)| a.id == b.id && a.program != b.program;
    ensure!(first.iter().zip(second).all(replaced), "programs were not replaced in their links: {links:?}");
    let removed = cleanup(Path::new(DEFAULT_PIN_ROOT))?;
    ensure!(removed.attachments == CGROUP_HOOKS.len(), "cleanup removed {removed:?}");
    fs::remove_dir(&cgroup)?;
    Ok(format!("{} programs", CGROUP_HOOKS.len()))
}

fn load_with(capacities: &Capacities) -> Result<Loaded> {
    ensure_bpffs(Path::new(DEFAULT_PIN_ROOT))?;
    let config = config_for("vm-guest", netns_cookie()?, ConnectHooks::All, false);
    Ok(load_object(object::embedded()?, &Pins::new(DEFAULT_PIN_ROOT), &config, capacities)?)
}

fn attacher(backend: TcBackend) -> Result<Attacher> {
    let small = Capacities { conntrack: 1024, rings: 1024, backends: 1024, ..Capacities::default() };
    let ebpf = load_with(&small)?.ebpf;
    Ok(Attacher::new(ebpf, Pins::new(DEFAULT_PIN_ROOT), Placement { backend, ..Placement::default() }))
}

/// A new pair each time; returns the index of the near end.
fn make_interface() -> Result<u32> {
    if nix::net::if_::if_nametoindex(NEAR).is_ok() {
        run("ip", &["link", "delete", NEAR])?;
    }
    run("ip", &["link", "add", NEAR, "type", "veth", "peer", "name", FAR])?;
    Ok(nix::net::if_::if_nametoindex(NEAR)?)
}

/// Both directions, seen by the kernel's own listing and not only by our pins.
fn carries_programs(index: u32) -> Result<()> {
    if has_tcx()? {
        for hook in &TC_HOOKS {
            let chain = sys::tcx_chain(index, hook.attach_type)?;
            ensure!(chain.len() == 1, "chain of {}: {chain:?}", hook.program);
        }
        return Ok(());
    }
    let filters = tc_filters()?;
    ensure!(filters == TC_HOOKS.len(), "{filters} filters");
    let marked = fs::read_dir(Pins::new(DEFAULT_PIN_ROOT).links())?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(CLSACT_MARK))
        .count();
    // One for each filter and one for the qdisc.
    ensure!(marked == TC_HOOKS.len() + 1, "{marked} pins for clsact");
    Ok(())
}

fn tc_filters() -> Result<usize> {
    let mut filters = 0;
    for direction in ["ingress", "egress"] {
        filters += run("tc", &["filter", "show", "dev", NEAR, direction])?.matches("direct-action").count();
    }
    Ok(filters)
}

fn has_tcx() -> Result<bool> {
    Ok(KernelVersion::current().context("kernel version")? >= TCX_SINCE)
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("starting {program}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), stderr.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
